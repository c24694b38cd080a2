"""The order is a pure function of (seed, step), whoever reads it and wherever it starts."""

import sys
import threading
import time

import jax
import numpy as np
import pytest

from diffusion_jax.data import pipeline
from diffusion_jax.data.pipeline import (
  evaluation_batches,
  example_indices,
  permutation,
  train_batches,
)
from diffusion_jax.errors import DamagedError, InputError

LOADERS = ('tf', 'threads')


class Numbers:
  """A source whose images are their own number."""

  label_names = ('a',)
  fingerprint = 'numbers'

  def __init__(self, num_examples):
    self.num_examples = num_examples
    self.element = {
      'image': jax.ShapeDtypeStruct((2, 2, 1), np.uint8),
      'label': jax.ShapeDtypeStruct((), np.int32),
    }

  def read(self, indices):
    image = np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 2, 1))
    return {'image': image.astype(np.uint8), 'label': indices.astype(np.int32)}


def labels(source, start, stop, **changes):
  options = dict(seed=0, batch_size=4, start_step=start, stop_step=stop)
  return [batch['label'] for batch in train_batches(source, **{**options, **changes})]


def test_every_epoch_is_a_permutation_and_epochs_differ():
  epochs = example_indices(0, 10, np.arange(30)).reshape(3, 10)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs}) == 3
  assert not np.array_equal(permutation(0, 0, 10), permutation(1, 0, 10))


def test_starting_late_gives_the_same_batches_across_an_epoch_boundary():
  source = Numbers(10)
  whole = labels(source, 0, 8)
  np.testing.assert_array_equal(labels(source, 2, 8), whole[2:])  # Step 2 crosses into epoch 1.
  assert len(whole) == 8 and all(len(batch) == 4 for batch in whole)


def test_a_far_start_needs_no_replay():
  far = 10**9
  found = labels(Numbers(10), far, far + 1)[0]
  np.testing.assert_array_equal(found, example_indices(0, 10, far * 4 + np.arange(4)))


@pytest.mark.parametrize('num_hosts', [1, 2, 4])
def test_hosts_hold_contiguous_slices_of_the_same_global_batch(num_hosts):
  source = Numbers(10)
  parts = [labels(source, 0, 3, rows=rows) for rows in np.split(np.arange(4), num_hosts)]
  together = [np.concatenate(step) for step in zip(*parts)]
  np.testing.assert_array_equal(together, labels(source, 0, 3))


def test_batches_keep_image_and_label_together_and_stay_uint8():
  batch = next(iter(train_batches(Numbers(9), seed=3, batch_size=5, start_step=0, stop_step=1)))
  assert batch['image'].dtype == np.uint8 and batch['image'].shape == (5, 2, 2, 1)
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['label'])


@pytest.mark.parametrize('num_hosts', [1, 2])
def test_evaluation_sees_every_example_once(num_hosts):
  seen = [
    batch['index']
    for rows in np.split(np.arange(16), num_hosts)
    for batch in evaluation_batches(Numbers(103), batch_size=16, rows=rows)
  ]
  seen = np.concatenate(seen)
  np.testing.assert_array_equal(np.sort(seen[seen >= 0]), np.arange(103))
  assert len(seen) == 112


def test_numbers_come_in_the_order_of_the_examples_themselves():
  source = Numbers(10)
  options = dict(seed=3, batch_size=4, start_step=1, stop_step=5)
  by_number = list(train_batches(pipeline.Numbers(source), **options))
  for numbers, batch in zip(by_number, train_batches(source, **options), strict=True):
    assert numbers.keys() == {'number'} and numbers['number'].dtype == np.int32
    np.testing.assert_array_equal(source.read(numbers['number'])['label'], batch['label'])


@pytest.mark.parametrize(
  'changes', [{}, {'rows': np.arange(2, 4)}, {'start_step': 10**9, 'stop_step': 10**9 + 7}]
)
def test_both_loaders_carry_the_same_batches(changes):
  source = Numbers(10)
  options = dict(seed=3, batch_size=4, start_step=1, stop_step=20) | changes
  by_tf, by_threads = (list(train_batches(source, **options, loader=name)) for name in LOADERS)
  assert len(by_threads) == options['stop_step'] - options['start_step']
  for ours, theirs in zip(by_threads, by_tf, strict=True):
    assert list(ours) == list(theirs) == ['image', 'label']
    for name, array in ours.items():
      assert array.dtype == theirs[name].dtype
      np.testing.assert_array_equal(array, theirs[name])


class Watched(Numbers):
  """Fails at the batch with example `bad`, and counts its reads; later ones are slow."""

  def __init__(self, bad=-1):
    super().__init__(10**6)
    self.bad, self.reads = bad, 0

  def read(self, indices):
    self.reads += 1
    if self.reads > 2:
      time.sleep(0.01)
    if self.bad in indices:
      raise DamagedError(f'example {self.bad}')
    return super().read(indices)


@pytest.mark.parametrize('loader', LOADERS)
def test_what_reading_raises_arrives_at_its_batch(loader):
  bad = int(example_indices(0, 10**6, np.arange(12, 16))[1])
  batches = train_batches(
    Watched(bad), seed=0, batch_size=4, start_step=0, stop_step=100, loader=loader
  )
  for _ in range(3):
    next(batches)
  with pytest.raises(DamagedError, match=f'^example {bad}$'):
    next(batches)


@pytest.mark.parametrize('loader', LOADERS)
def test_reading_ahead_is_bounded_and_ends_when_closed(loader):
  source = Watched()
  batches = train_batches(
    source, seed=0, batch_size=4, start_step=0, stop_step=10**6, loader=loader
  )
  next(batches)
  time.sleep(0.3)
  ahead = pipeline.PREFETCH_BATCHES + 2 * pipeline.READERS
  assert pipeline.PREFETCH_BATCHES <= source.reads <= 1 + ahead
  batches.close()
  time.sleep(0.1)
  read = source.reads
  time.sleep(0.1)
  assert source.reads == read <= 1 + ahead
  assert not [t for t in threading.enumerate() if t.name.startswith('batches')]
  assert next(batches, None) is None


def test_threads_carry_batches_where_tensorflow_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  for loader in ('auto', 'threads'):
    np.testing.assert_array_equal(
      labels(Numbers(10), 0, 3, loader=loader), example_indices(0, 10, np.arange(12)).reshape(3, 4)
    )
  with pytest.raises(InputError, match=r"config\.data\.loader: 'tf'.*tensorflow.*'threads'"):
    labels(Numbers(10), 0, 3, loader='tf')


def test_tf_data_carries_batches_where_it_is_there():
  assert pipeline.carrier('auto') == pipeline.carrier('tf') != pipeline.carrier('threads')
