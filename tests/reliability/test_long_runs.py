"""A long training keeps nothing: arrays, threads, file descriptors and memory stay as they are."""

import gc
import os
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.runtime.checkpoint import Checkpoints
from tests.conftest import tiny_mapping
from tests.support.tiny_flags import TINY

pytestmark = pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='needs /proc')


def held():
  """Live arrays, threads, file descriptors, and MB of memory in use."""
  gc.collect()
  pages = int(Path('/proc/self/statm').read_text().split()[1])
  memory = pages * os.sysconf('SC_PAGE_SIZE') / 1e6
  return len(jax.live_arrays()), threading.active_count(), len(os.listdir('/proc/self/fd')), memory


def trained(tmp_path, monkeypatch, num_steps, every):
  """Trains with previews and checkpoints. Returns: step -> what is held before its save."""
  found, save = {}, Checkpoints.save

  def save_and_count(self, step, *arguments):
    self.wait()
    found[step] = held()
    save(self, step, *arguments)

  monkeypatch.setattr(Checkpoints, 'save', save_and_count)
  changes = {'train.num_steps': num_steps, 'train.log_every_steps': 20}
  changes |= {'train.preview_every_steps': every, 'checkpoint.every_steps': every}
  run_mode('train', tiny_mapping(tmp_path, **{**TINY, **changes}), {}, tmp_path / 'run')
  return found


@pytest.mark.parametrize(
  ('last', 'every', 'first'),
  [
    pytest.param(600, 60, 120, marks=pytest.mark.slow),
    pytest.param(6000, 200, 1000, marks=pytest.mark.full),
  ],
)
def test_a_long_training_holds_what_a_short_one_does(tmp_path, monkeypatch, last, every, first):
  found = trained(tmp_path, monkeypatch, last + every, every)  # At the very end threads end, too.
  for step, (arrays, threads, descriptors, memory) in found.items():
    print(f'step {step}: {arrays} arrays, {threads} threads, {descriptors} files, {memory:.1f} MB')
  early = np.array([found[step][:3] for step in found if first <= step <= 2 * first])
  assert (
    np.array(found[last][:3]) <= early.max(0)
  ).all()  # Threads come and go with the reading ahead.
  late = {step: memory for step, (*_, memory) in found.items() if step >= first}
  slope = np.polyfit(list(late), list(late.values()), 1)[0] * 1000
  print(f'{slope:.2f} MB per 1,000 steps')
  if last == 6000:  # Within 600 the allocator has not settled.
    assert slope < 5
