"""Small experiments that many tests share, and what a session of tests costs."""

import contextlib
import ctypes
import gc
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
import pytest

from configs import quickstart
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import create


def tiny_mapping(tmp_path, **changes):
  """quickstart at the smallest sizes, with flattened overrides such as {'model.name': 'unet'}."""
  config = quickstart.get_config()
  tiny = {
    'data.dir': str(tmp_path / 'data'),
    'data.workers': 1,  # Starting a process takes longer than all digits.
    'model.dit.hidden_size': 32,
    'model.dit.depth': 2,
    'model.dit.num_heads': 2,
    'model.unet.num_heads': 2,
    'model.unet.channel_mult': (1, 1),
    'optimizer.warmup_steps': 2,
    'train.num_steps': 4,
    'train.batch_size': 16,
    'train.log_every_steps': 2,
    'train.holdout_every_steps': 4,
    'train.preview_every_steps': 4,
    'checkpoint.every_steps': 2,
    'sample.num_samples': 20,
    'sample.batch_size': 16,
    'sample.num_steps': 3,
    'sample.grid_columns': 2,
    'sample.gif_frames': 3,
    'eval.features.dataset_classifier.num_steps': 5,
    'eval.features.dataset_classifier.channels': (8, 8),
  }
  config.update_from_flattened_dict({**tiny, **changes})
  return config.to_dict()


@pytest.fixture(scope='session')
def digits(tmp_path_factory):
  """A folder with the prepared data of tiny_mapping."""
  folder = tmp_path_factory.mktemp('digits')
  preparation.ensure(create(tiny_mapping(folder)), folder / 'prepared')
  return folder / 'data'


@pytest.fixture
def tiny(tmp_path, digits):
  """tiny(**{'model.name': 'unet'}) -> Experiment, its data prepared."""

  def build(**changes):
    experiment = create(tiny_mapping(tmp_path, **changes))
    shutil.copytree(digits, tmp_path / 'data', dirs_exist_ok=True)
    preparation.ensure(experiment, tmp_path / 'prepared')
    return experiment

  return build


OUT_OF_TIME = 'out of time (TESTS_UNTIL)'


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  """Slow tests run what they compile for long: they get the optimised program, as users do.

  None begins after the time in TESTS_UNTIL, in seconds since 1970, where that is set.
  """
  if time.time() > float(os.environ.get('TESTS_UNTIL', 'inf')):
    pytest.skip(OUT_OF_TIME)
  names = {marker.name for marker in item.iter_markers()}
  slow = bool(names & {'slow', 'full'}) and 'unoptimised' not in names
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '0' if slow else '1'  # Of child processes.
  jax.config.update('jax_disable_most_optimizations', not slow)


def release_memory():
  """Drops compiled programs, which add up to gigabytes, and hands what is free back to the system."""
  jax.clear_caches()
  gc.collect()
  with contextlib.suppress(
    OSError, AttributeError
  ):  # Only glibc keeps what is freed, and has this.
    ctypes.CDLL('libc.so.6').malloc_trim(0)


@pytest.fixture(scope='module', autouse=True)
def memory():
  """Compiled programs go with the file that made them."""
  yield
  release_memory()


@pytest.fixture(autouse=True)
def memory_within():
  """And within a file where they have become many."""
  yield
  statm = Path('/proc/self/statm')  # Linux alone tells how much is in use now.
  if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') > 1.9e9:
    release_memory()


PEAKS = pytest.StashKey[dict[str, float]]()


def peak_memory():
  """The largest resident size of this process so far, in GB."""
  unit = 1 if sys.platform == 'darwin' else 1024  # Bytes there, KiB elsewhere.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def pytest_configure(config):
  config.stash[PEAKS] = {}


def pytest_sessionfinish(session):
  if hasattr(session.config, 'workeroutput'):  # A worker of pytest-xdist tells the controller.
    session.config.workeroutput['peak_memory'] = peak_memory()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
  output = getattr(node, 'workeroutput', {})
  node.config.stash[PEAKS][node.gateway.id] = output.get('peak_memory', float('nan'))


def pytest_terminal_summary(terminalreporter, config):
  peaks = config.stash[PEAKS] or {'this process': peak_memory()}
  each = ', '.join(f'{name} {peak:.1f} GB' for name, peak in sorted(peaks.items()))
  terminalreporter.write_line(f'peak memory: {each}')
  late = [r for r in terminalreporter.stats.get('skipped', ()) if OUT_OF_TIME in str(r.longrepr)]
  if late:
    first = late[0].nodeid
    terminalreporter.write_line(f'{OUT_OF_TIME}: {len(late)} tests did not run, the first {first}')
