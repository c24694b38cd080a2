"""Item 4: SIGTERM to a process of the command, whatever it does; the same command goes on."""

import signal
import time

import pytest

from tests.support.clusters import finish, start, wait_for
from tests.test_clusters_signals import LONGEST

TINY = {
  'model.dit.depth': 1,
  'model.dit.hidden_size': 32,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 40,
  'train.batch_size': 32,
  'train.log_every_steps': 1,
  'train.holdout_every_steps': 40,
  'train.preview_every_steps': 40,
  'checkpoint.every_steps': 8,
  'sample.num_samples': 200,
  'sample.batch_size': 20,
  'sample.num_steps': 5,
}


def started(folder):
  return (folder / 'run').exists()


def compiling(folder):
  return (folder / 'run' / 'train.lease').exists()


def training(folder):
  path = folder / 'run' / 'metrics.jsonl'
  return path.exists() and '"step": 3' in path.read_text()


def saving(folder):
  return any((folder / 'run' / 'checkpoints').glob('*tmp*'))


def sampling(folder):
  return any((folder / 'run' / 'samples' / 'sample').glob('part-*'))


def evaluating(folder):
  return (folder / 'run' / 'samples' / 'evaluate' / 'grid.png').exists()


@pytest.mark.full
@pytest.mark.unoptimised
def test_sigterm_ends_everything_and_the_same_command_goes_on(tmp_path):
  config = ['--config=configs/quickstart.py', f'--config.data.dir={tmp_path}/data']
  flags = [f'--config.{name}={value}' for name, value in TINY.items()]
  command = [*config, f'--workdir={tmp_path}/run', *flags]

  def run(mode):
    own = [f'--mode={mode}', f'--config.sample.name={mode}']
    return start(*command, *own, num_processes=1, devices=1)

  for mode, moments in (
    ('train', (started, compiling, training, saving)),
    ('sample', (sampling,)),
    ('evaluate', (evaluating,)),
  ):
    for moment in moments:
      running = run(mode)
      wait_for(lambda moment=moment: moment(tmp_path), running)
      began = time.monotonic()
      running[0].send_signal(signal.SIGTERM)
      codes, outputs, errors = finish(running)
      took = time.monotonic() - began
      assert codes == [75] and took < LONGEST, (mode, moment, codes, outputs, errors)
      assert len(errors[0].strip().splitlines()[-1]) < 300 and 'SIGTERM' in errors[0]
    codes, outputs, errors = finish(run(mode))
    assert codes == [0], errors
    if mode == 'train':
      assert 'resumed at step' in outputs[0]
