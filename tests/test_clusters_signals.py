"""A signal to one of two processes ends both: at once, or after the same step with a checkpoint."""

import functools
import json
import signal
import time

import pytest

from tests.support.clusters import finish, start, wait_for

TINY = {
  'model.dit.depth': 1,
  'model.dit.hidden_size': 32,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 3000,
  'train.batch_size': 32,
  'train.log_every_steps': 5,
  'train.holdout_every_steps': 5000,
  'train.preview_every_steps': 5000,
  'checkpoint.every_steps': 5000,
  'sample.num_samples': 4000,
  'sample.batch_size': 40,
  'sample.num_steps': 3,
}
LONGEST = 30  # Seconds, and one save.


def flags(**changes):
  return [f'--config.{name}={value}' for name, value in {**TINY, **changes}.items()]


def lines(folder):
  path = folder / 'metrics.jsonl'
  return path.read_text().splitlines() if path.exists() else []


def stop(running, number):
  """Sends SIGTERM to one. Returns: what finish does, after asserting that all end in time."""
  began = time.monotonic()
  running[number].send_signal(signal.SIGTERM)
  found = finish(running, timeout=100)
  assert time.monotonic() - began < LONGEST, found
  assert found[0] == [75, 75], found
  return found


@pytest.mark.slow
@pytest.mark.unoptimised
def test_both_stop_after_the_same_step_and_the_same_command_goes_on(tmp_path):
  workdir = tmp_path / 'run'
  command = ['--config=configs/quickstart.py', f'--workdir={workdir}', *flags()]
  command.append(f'--config.data.dir={tmp_path}/data')

  def wait_for_lines(running, more):
    there = len(lines(workdir))
    wait_for(lambda: len(lines(workdir)) > there + more, running)

  running = start(*command)
  for number in (1, 0):
    wait_for_lines(running, 2)
    _, _, errors = stop(running, number)
    stopped = json.loads(lines(workdir)[-1])['step']
    checkpoint = sorted(int(path.name) for path in (workdir / 'checkpoints').glob('[0-9]*'))[-1]
    assert stopped <= checkpoint < 3000 and f'step {checkpoint}' in errors[0]
    running = start(*command)
    wait_for_lines(running, 1)
  stop(running, 1)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_both_break_off_metrics_that_take_minutes(tmp_path):
  workdir = tmp_path / 'run'
  long = {'train.eval_every_steps': 5, 'train.eval_num_samples': 400_000}
  command = ['--config=configs/quickstart.py', f'--workdir={workdir}', *flags(**long)]
  running = start(*command, f'--config.data.dir={tmp_path}/data')
  wait_for(lambda: lines(workdir), running)  # That of step 5.
  time.sleep(3)
  _, _, errors = stop(running, 1)
  assert 'at step 5: checkpoint written' in errors[0]


@pytest.mark.full
@pytest.mark.unoptimised
def test_both_end_at_once_where_nothing_is_unsaved(tmp_path):
  workdir = tmp_path / 'run'
  command = ['--config=configs/quickstart.py', f'--workdir={workdir}']
  command.append(f'--config.data.dir={tmp_path}/data')

  def log():
    path = workdir / 'logs' / 'host-0.log'
    return path.read_text() if path.exists() else ''

  def parts(name):
    return list((workdir / 'samples' / name).glob('part-*'))

  running = start(*command, *flags())
  wait_for(lambda: 'training in' in log(), running)  # Before the step is compiled.
  _, _, errors = stop(running, 1)
  assert 'goes on from what is finished' in errors[0]
  assert not list((workdir / 'checkpoints').glob('[0-9]*'))

  changes = {'train.num_steps': 2, 'train.holdout_every_steps': 2, 'train.preview_every_steps': 2}
  assert finish(start(*command, *flags(**changes)))[0] == [0, 0]
  for mode, number in (('sample', 0), ('evaluate', 1)):
    running = start(*command, f'--mode={mode}', *flags(**changes, **{'sample.name': mode}))
    wait_for(functools.partial(parts, mode), running)
    stop(running, number)
