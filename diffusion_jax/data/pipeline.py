"""Orders and delivers batches.

The order is a pure function of (seed, step): global position p is example
perm(seed, epoch)[p mod N] of epoch p // N. Nothing is remembered between steps, so starting at
step 10^9 costs what starting at 0 costs. What carries the batches to the step does not change them:
tf.data (range of steps -> read -> prefetch) where TensorFlow is installed, threads elsewhere.
"""

import collections
import functools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import jax
import numpy as np

from diffusion_jax.runtime import packages
from diffusion_jax.types import DataSource

PREFETCH_BATCHES = 4
READERS = 2  # Batches that are read at once.


@functools.lru_cache(maxsize=2)  # A batch touches two epochs at most while epochs are not tiny.
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """Draws the order of one epoch by Philox from (seed, epoch): (num_examples,) int64."""
  bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
  order = np.random.Generator(bits).permutation(num_examples)
  order.flags.writeable = False
  return order


def example_indices(seed: int, num_examples: int, positions: np.ndarray) -> np.ndarray:
  """Returns the examples at any global positions (n,): (n,) int64."""
  epochs, offsets = np.divmod(positions, num_examples)
  indices = np.empty_like(positions)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = permutation(seed, int(epoch), num_examples)[offsets[here]]
  return indices


def train_batches(
  source: DataSource,
  *,
  seed: int,
  batch_size: int,
  start_step: int,
  stop_step: int,
  rows: np.ndarray | None = None,
  loader: str = 'auto',
) -> Generator[dict[str, np.ndarray], None, None]:
  """Yields the global batches of steps start_step..stop_step - 1, or of each the `rows` that a host holds.

  Closing the iterator ends what reads ahead.
  Raises: as carrier; the errors of source.read, at the batch where they happened.
  """
  carry = carrier(loader)
  rows = np.arange(batch_size) if rows is None else rows
  specs = {
    name: jax.ShapeDtypeStruct((len(rows), *item.shape), item.dtype)
    for name, item in sorted(source.element.items())
  }

  def read(step):
    positions = int(step) * batch_size + rows
    batch = source.read(example_indices(seed, source.num_examples, positions))
    return {name: batch[name] for name in specs}

  return carry(read, range(start_step, stop_step), specs)


def carrier(loader: str) -> Callable[..., Generator[dict[str, np.ndarray], None, None]]:
  """Returns what delivers batches for a config.data.loader. Raises: InputError for 'tf' without TensorFlow."""
  if loader == 'tf':
    packages.require('tensorflow', 'tf', "config.data.loader: 'tf'", "use 'threads'")
  if loader == 'threads' or not packages.is_installed('tensorflow'):
    return _by_threads
  return _by_tf


def evaluation_batches(
  source: DataSource, *, batch_size: int, rows: np.ndarray
) -> Iterator[dict[str, np.ndarray]]:
  """Yields every example once, in order, with 'index' (-1 where the last batch is padded).

  rows: those of each batch that this host holds.
  """
  for first in range(0, source.num_examples, batch_size):
    index = first + rows
    valid = index < source.num_examples
    batch = source.read(np.where(valid, index, 0))
    yield {**batch, 'index': np.where(valid, index, -1)}


class Numbers:
  """A source that delivers the numbers of examples instead of reading them.

  For data that lives on the device already: the same order, gathered there.
  """

  element: ClassVar = {'number': jax.ShapeDtypeStruct((), np.int32)}

  def __init__(self, source: DataSource):
    self.num_examples, self.label_names = source.num_examples, source.label_names
    self.fingerprint = source.fingerprint

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {'number': indices.astype(np.int32)}


def _by_threads(read, steps, specs):
  del specs
  ahead = collections.deque()
  with ThreadPoolExecutor(READERS, 'batches') as pool:
    try:
      for step in steps:
        ahead.append(pool.submit(read, step))
        if len(ahead) > PREFETCH_BATCHES:
          yield ahead.popleft().result()
      while ahead:
        yield ahead.popleft().result()
    finally:
      for reading in ahead:
        reading.cancel()


def _by_tf(read, steps, specs):
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')  # The accelerator belongs to JAX.
  failed = []

  def arrays(step):
    try:
      return list(read(step).values())
    except Exception as error:  # TensorFlow passes on no more than its text.
      failed.append(error)
      raise

  def load(step):
    types = [tf.as_dtype(spec.dtype) for spec in specs.values()]
    found = tf.numpy_function(arrays, [step], types, stateful=False)
    return {name: tf.ensure_shape(a, specs[name].shape) for name, a in zip(specs, found)}

  dataset = tf.data.Dataset.range(steps.start, steps.stop)
  dataset = dataset.map(load, num_parallel_calls=READERS, deterministic=True)
  options = tf.data.Options()
  options.autotune.enabled = False
  dataset = dataset.prefetch(PREFETCH_BATCHES).with_options(options)
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:
    raise (failed[0] if failed else error) from None
