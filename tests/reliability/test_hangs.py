"""Item 8: one of two processes is killed or asleep; the other ends, and both go on when started again."""

import signal
import time

import pytest

from diffusion_jax.runtime.cluster import HEARTBEAT
from tests.support.clusters import ROOT, finish, start, wait_for
from tests.test_clusters_signals import flags, lines

pytestmark = [pytest.mark.unoptimised]


@pytest.fixture
def command(tmp_path):
  changes = flags(**{'train.watchdog_seconds': 20, 'checkpoint.every_steps': 100})
  config = ['--config=configs/quickstart.py', f'--config.data.dir={tmp_path}/data']
  return [*config, f'--workdir={tmp_path}/run', *changes]


def train_until(command, folder, count):
  running, there = start(*command), len(lines(folder))
  wait_for(lambda: len(lines(folder)) > there + count, running)
  return running


@pytest.mark.full
def test_one_process_asleep_is_noticed_by_the_watchdog_of_the_other(command, tmp_path):
  folder = tmp_path / 'run'
  running = train_until(command, folder, 21)  # Between two checkpoints: there the clock runs.
  running[1].send_signal(signal.SIGSTOP)
  try:
    _, errors = running[0].communicate(timeout=HEARTBEAT + 60)
  except BaseException:
    running[1].kill()
    raise
  running[1].send_signal(signal.SIGCONT)  # It has lost the other.
  running[1].communicate(timeout=HEARTBEAT + 60)
  assert running[0].returncode == 70 and 'watchdog_seconds' in errors, errors[-6000:]
  assert 'run_loop' in (folder / 'logs' / 'stacks-0.txt').read_text()
  assert running[1].returncode not in (0, None)
  finish_again(command, folder)


@pytest.mark.full
@pytest.mark.parametrize('killed', [0, 1])
def test_one_process_killed_ends_the_other(command, tmp_path, killed):
  folder = tmp_path / 'run'
  running = train_until(command, folder, 21)
  began = time.monotonic()
  running[killed].kill()
  running[1 - killed].communicate(timeout=HEARTBEAT + 60)
  assert running[1 - killed].returncode not in (0, None)
  assert time.monotonic() - began < HEARTBEAT + 30
  finish_again(command, folder)


LATE = """
import sys, time
from diffusion_jax.experiment.experiment import Experiment

compile_steps = Experiment.compile_steps

def late(self, *arguments):
  time.sleep(25 if '--process_id=1' in sys.argv else 0)
  return compile_steps(self, *arguments)

Experiment.compile_steps = late
from diffusion_jax import cli
sys.exit(cli.main())
"""


@pytest.mark.full
def test_a_process_that_compiles_for_longer_is_waited_for(command, tmp_path):
  """The other has compiled: its clock must not run meanwhile."""
  (tmp_path / 'late.py').write_text(LATE)
  short = ['--config.train.watchdog_seconds=10', '--config.train.num_steps=20']
  program = (str(tmp_path / 'late.py'),)
  environment = {'PYTHONPATH': str(ROOT)}
  codes, outputs, errors = finish(start(*command, *short, program=program, **environment))
  assert codes == [0, 0], errors
  assert 'done: 20 steps' in outputs[0]


def finish_again(command, folder):
  """The same command goes on from a checkpoint, on both."""
  running = train_until(command, folder, 1)
  running[1].send_signal(signal.SIGTERM)
  codes, outputs, errors = finish(running)
  assert codes == [75, 75], errors
  assert 'resumed at step' in outputs[0]
