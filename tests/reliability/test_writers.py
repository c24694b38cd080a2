"""Two commands that would write the same: the second one says who holds it. Reading goes on beside them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.runtime import lease
from tests.conftest import tiny_mapping
from tests.support.killing import steps
from tests.support.tiny_flags import TINY, tiny_flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  run('train', folder)
  return folder


def run(mode, folder, **changes):
  run_mode(mode, tiny_mapping(folder, **{**TINY, **changes}), changes, folder / 'run')


def holder():
  return rf'process {os.getpid()} of host {re.escape(socket.gethostname())} since 20\d\d-'


@pytest.mark.parametrize(
  ('mode', 'path', 'changes'),
  [
    ('train', 'train.lease', {'train.num_steps': 8}),
    ('sample', 'samples/held/sample.lease', {'sample.name': 'held'}),
    (
      'evaluate',
      'samples/held/sample.lease',
      {'sample.name': 'held'},
    ),  # Which would sample it first.
  ],
)
def test_a_second_writer_is_told_who_is_first(trained, monkeypatch, mode, path, changes):
  for name, seconds in (('RENEWED_EVERY', 0.05), ('STALE_AFTER', 20), ('POLLED_EVERY', 0.02)):
    monkeypatch.setattr(lease, name, seconds)
  with lease.held(trained / 'run' / path, 'the first'):
    with pytest.raises(InputError, match=holder()) as stop:
      run(mode, trained, **changes)
    assert stop.value.exit_code == 2 and str(trained / 'run') in str(stop.value)
    assert '\n' not in str(stop.value)
    assert steps(trained / 'run') == [2, 4]
    assert not list((trained / 'run').glob('samples/held/part-*'))
    if mode == 'train':  # What only reads, and another set, go on beside it.
      run('evaluate', trained)
      run('sample', trained, **{'sample.name': 'other'})


def main(*arguments):
  command = [sys.executable, 'main.py', *arguments]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  return subprocess.Popen(command, cwd=ROOT, **pipes)


def finished(*arguments):
  process = main(*arguments)
  _, errors = process.communicate(timeout=300)
  return process.returncode, errors


@pytest.mark.slow
@pytest.mark.unoptimised
def test_commands_beside_a_training(tmp_path):
  """As a user starts them: a second training, sampling twice, and an evaluation."""
  flags = tiny_flags(tmp_path / 'data', tmp_path / 'run', **{'train.num_steps': 10_000_000})
  training = main(*flags)
  try:
    while not steps(tmp_path / 'run'):
      assert training.poll() is None, training.stderr.read()
      time.sleep(0.2)
    code, errors = finished(*flags)
    assert code == 2 and 'Traceback' not in errors, errors
    assert f'process {training.pid} of host {socket.gethostname()} since 20' in errors
    workdir = f'--workdir={tmp_path / "run"}'
    for mode in ('--mode=sample', '--mode=evaluate'):
      code, errors = finished(workdir, mode, '--config.sample.name=beside')
      assert code == 0, errors
    assert training.poll() is None
    training.send_signal(signal.SIGTERM)
    _, errors = training.communicate(timeout=120)
    assert training.returncode == 75, errors
  finally:
    training.kill()
  assert not (tmp_path / 'run' / 'train.lease').exists()
