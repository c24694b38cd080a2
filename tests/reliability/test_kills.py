"""kill -9 at any moment: the next start restores a verified step, and the end is that of a run without."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.run import load_run
from diffusion_jax.runtime.checkpoint import Checkpoints
from tests.support.killing import SAVING, leftovers
from tests.support.tiny_flags import tiny_flags

ROOT = Path(__file__).parents[2]
SAVES = re.escape(SAVING)
# The number-th file operation of a kind, of some 30 that a save takes; then a few seconds.
WHILE_SAVING = [(SAVES, number) for number in (1, 40, 4, 9, 47, 13, 52, 17, 21, 24, 27, 58)]
ELSEWHERE = [
  (r'train\.lease x ',),
  (r'rename \.config\.json',),
  (r'rename \.metrics\.jsonl',),
  (r'metrics\.jsonl a ', 1, 0.3),
  (r'metrics\.jsonl a ', 1, 1.2),
  (r'open previews/\.',),
  (r'rename previews/\.',),
  (r'os\.rmdir checkpoints/\d+ ',),
]


def child(module, *arguments):
  """Runs a module of tests.support. Returns: what it printed."""
  command = [sys.executable, '-m', f'tests.support.{module}', *map(str, arguments)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_a_killed_save_leaves_the_step_before_and_nothing_else(tmp_path):
  (tmp_path / 'run').mkdir()
  printed = child('killed_saves', tmp_path / 'run', 1, 5, 9, 13, 17, 21, 24, 27)
  begun, *killed, resumed, last = map(json.loads, printed.splitlines())
  assert begun['code'] == resumed['code'] == last['code'] == 0
  assert len(killed) == 8 and all(start['code'] == -9 for start in killed)
  assert sum(bool(start['saving']) for start in killed) >= 7  # All but the one before the folder.
  assert [start['restored'] for start in (*killed, resumed, last)] == [2] * 9 + [3]
  assert all(start['leftovers'] == [] for start in (*killed, resumed, last))


def digest(folder):
  """SHA-256 of all arrays of the newest state."""
  run = load_run(folder)
  checkpoints = Checkpoints(folder / 'checkpoints', read_only=True)
  restored = checkpoints.restore(run.experiment.abstract_state)
  checkpoints.close()
  found = hashlib.sha256(str(restored.step).encode())
  for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(restored.state)):
    found.update(f'{path} {x.dtype} {x.shape}'.encode() + np.asarray(x).tobytes())
  return found.hexdigest()


def losses(folder):
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def chain(tmp_path, name, moments, **changes):
  """Runs main.py once a moment, and once to its end. Returns: what each start left."""
  flags = tiny_flags(tmp_path / 'data', tmp_path / name, **changes)
  given = {'arguments': flags, 'workdir': str(tmp_path / name), 'moments': [*moments, None]}
  (tmp_path / name).mkdir()
  (tmp_path / f'{name}.json').write_text(json.dumps(given))
  child('killing', tmp_path / f'{name}.json', tmp_path / f'{name}-results.json')
  return json.loads((tmp_path / f'{name}-results.json').read_text())


@pytest.mark.full
@pytest.mark.unoptimised
def test_twenty_kills_change_nothing(tmp_path):
  steps = {'train.num_steps': 24}
  moments = [m for pair in zip(ELSEWHERE, WHILE_SAVING) for m in pair] + WHILE_SAVING[8:]
  *killed, ended = chain(tmp_path, 'killed', moments, **steps)
  for start in killed:
    print(start['killed'], start['saving'], start['steps'])  # The log of the moments.
  assert len(killed) == 20
  assert [start['returncode'] for start in killed] == [-9] * 20, killed
  assert sum(bool(start['saving']) for start in killed) >= 10
  assert ended['returncode'] == 0, ended['stderr']
  for before, after in zip(killed, [*killed, ended][1:]):
    assert 'damaged' not in after['stdout']
    if 'lease x' not in after.get('killed', ''):  # It restored nothing.
      newest = max(before['steps'], default=None)
      found = re.search(r'resumed at step (\d+)|(fresh start)', after['stdout'])
      assert found and (int(found[1]) if found[1] else None) == newest
    assert after.get('leftovers', []) == []
  (whole,) = chain(tmp_path, 'whole', [], **steps)
  assert whole['returncode'] == 0, whole['stderr']
  assert digest(tmp_path / 'killed') == digest(tmp_path / 'whole')
  assert losses(tmp_path / 'killed') == losses(tmp_path / 'whole')
  found, wanted = (os.listdir(tmp_path / name / 'checkpoints') for name in ('killed', 'whole'))
  assert sorted(found) == sorted(wanted) and leftovers(tmp_path / 'killed') == []
