"""The training of scripts/accelerator_report.py, which goes on from command to command and after a kill."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import cifar10
from diffusion_jax.config.fields import defaults, in_force, schema, updated
from diffusion_jax.config.schema import Config
from tests.scripts.test_accelerator_report import SCRIPT, accelerator, environment_of

assert accelerator  # A fixture.


def write_archive(path):
  """Ten classes of noise, six images each to train on and two to test."""
  rng = np.random.default_rng(0)
  with tarfile.open(path, 'w') as archive:
    for split, count in (('train', 6), ('test', 2)):
      for number in range(10 * count):
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(data, 'png')
        found = tarfile.TarInfo(f'{split}/class{number % 10}/{number}.png')
        found.size = data.tell()
        data.seek(0)
        archive.addfile(found, data)


@pytest.mark.parametrize('name', ['full', 'laptop'])
def test_the_network_is_that_of_the_config(accelerator, name):
  """What differs is what CHANGES names, the data, what judges samples, and that the time ends the training."""
  command = accelerator('accelerator.cifar_command')
  wanted = cifar10.get_config(name).to_dict()
  ours = command.values('full', name, 'x.tar', Path('run'))
  made = updated(Config, defaults(schema(Config)), ours)
  read = [dict(in_force(schema(Config, m), m)) for m in (made, wanted)]
  differing = {field for field in read[0] if read[0][field] != read[1].get(field)}
  others = {'data.source', 'data.dir', 'data.holdout', 'optimizer.decay', 'train.num_steps'}
  unused = {field for field in read[0] if field.startswith(('eval.', 'vae.'))}
  assert differing - unused <= others | set(command.CHANGES[name])
  assert {'model.dit.depth', 'train.batch_size', 'optimizer.learning_rate'} <= set(read[0])


def line(step, **values):
  return json.dumps({'step': step, **values}) + '\n'


def write_run(folder):
  """A log as training writes it: a line shorter than the others after a resume, and one half written."""
  facts = {'images_per_s': 640.0, 'step_time': 0.1, 'mfu': 0.3, 'data_wait': 0.0, 'skipped': 0}
  lines = [line(20, loss=0.9, **facts), line(25, loss=0.8, **facts, averaged_steps=5)]
  lines += [line(25, holdout_loss=0.85), line(25, **{'frechet_distance@20': 3.0})]
  lines.append(line(40, loss=0.7, **facts, averaged_steps=15))
  (folder / 'metrics.jsonl').write_text(''.join(lines) + '{"step": 6')
  (folder / 'checkpoints' / '25').mkdir(parents=True)
  (folder / 'checkpoints' / '40').mkdir()
  config = {'model': {'dit': {'depth': 12, 'hidden_size': 384, 'patch_size': 2}}}
  (folder / 'config.json').write_text(json.dumps(config))


def test_minutes_are_those_of_the_steps_in_the_log(accelerator, tmp_path):
  cifar = accelerator('accelerator.cifar')
  write_run(tmp_path)
  found = cifar.summary(tmp_path, 2.0)
  assert found['trained_seconds'] == pytest.approx(40 * 0.1)
  assert (found['steps'], found['batch_size']) == (40, 64)
  assert found['images_per_s'] == pytest.approx(640.0) and found['mfu'] == pytest.approx(0.3)
  assert found['loss'] == [(20, 0.9), (25, 0.8), (40, 0.7)]
  assert found['holdout_loss'] == [(25, 0.85)]
  assert found['distances'] == {'frechet_distance@20': [(25, 3.0)]}
  assert cifar.summary(tmp_path / 'none', 2.0)['trained_seconds'] == 0


def test_more_minutes_let_the_training_go_on_and_renew_the_distances(accelerator):
  cifar = accelerator('accelerator.cifar')
  trained = {'result': {'trained_seconds': 60.0}}
  pieces = {'cifar.prepare': {'result': {}}, 'cifar.train': trained, 'cifar.evaluate': trained}

  def left(minutes):
    return [name for name in pieces if not cifar.is_done(name, pieces, minutes)]

  assert left(1.0) == [] and left(2.0) == ['cifar.train']
  pieces['cifar.train'] = {'result': {'trained_seconds': 120.0}}
  assert left(2.0) == ['cifar.evaluate']
  pieces['cifar.train'] = {'result': {'trained_seconds': 30.0}}  # Anew, on another machine.
  assert left(0.5) == ['cifar.evaluate']


def test_a_training_on_another_machine_starts_anew_unless_it_was_measured(accelerator, tmp_path):
  cifar = accelerator('accelerator.cifar')
  trained = {'result': {'trained_seconds': 60.0}}
  pieces = {'cifar.prepare': {}, 'cifar.train': trained, 'cifar.evaluate': trained}
  cifar.forget_lost(pieces, tmp_path)
  assert len(pieces) == 3
  del pieces['cifar.evaluate']
  (tmp_path / 'checkpoints' / '20').mkdir(parents=True)
  cifar.forget_lost(pieces, tmp_path)
  assert len(pieces) == 2
  cifar.forget_lost(pieces, tmp_path / 'elsewhere')
  assert list(pieces) == ['cifar.prepare']


def is_training(workdir):
  """Whether a process adds to the log."""
  before = (workdir / 'metrics.jsonl').stat().st_size
  time.sleep(5)
  return before != (workdir / 'metrics.jsonl').stat().st_size


@pytest.mark.full
def test_the_training_goes_on_after_a_kill_and_its_results_are_in_the_report(tmp_path):
  archive, out = tmp_path / 'images.tar', tmp_path / 'out'
  workdir = out / 'cifar10-cpu-tiny'
  write_archive(archive)
  command = [sys.executable, str(SCRIPT), '--size=tiny', f'--out={out}', f'--cifar={archive}']
  command += ['--train_minutes=0.3', '--only=cifar', '--budget=500']
  environment = environment_of(tmp_path)
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
    while not any(path.name.isdigit() for path in (workdir / 'checkpoints').glob('*')):
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
  record = json.loads((out / 'accelerator-cpu-tiny.json').read_text())
  assert list(record['pieces']) == ['cifar.prepare']
  time.sleep(2)  # Until the worker has seen that its parent is gone.
  assert not is_training(workdir)
  kept = max(int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit())
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stdout + done.stderr
  log = (workdir / 'train.log').read_text()
  assert f'resumed at step {kept}' in log and 'checkpoint written' in log, log
  record = json.loads((out / 'accelerator-cpu-tiny.json').read_text())
  trained, found = (record['pieces'][f'cifar.{name}']['result'] for name in ('train', 'evaluate'))
  assert trained['trained_seconds'] >= 17 and trained['steps'] > 20
  assert trained['holdout_loss'] and trained['distances']['frechet_distance@20']
  assert [row['step'] for row in found['rows']] == [trained['steps']] * 2
  assert found['rows'][0]['real_baseline']['metrics']['frechet_distance'] >= 0
  text = (out / 'accelerator-cpu-tiny.md').read_text()
  for name in record['pictures']:
    assert (out / name).stat().st_size > 0 and name in text
  assert 'real training images' in text and f'{trained["steps"]:,} steps' in text
