"""Order and delivery of batches.

The order is a pure function of (seed, step): global position p is example
perm(seed, epoch)[p mod N] of epoch p // N. Nothing is remembered between steps, so starting at
step 10^9 costs what starting at 0 costs. What carries the batches to the step does not change them:
tf.data (range of steps -> read -> prefetch) where TensorFlow is installed, threads elsewhere.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from diffusion_jax.runtime import packages
from diffusion_jax.types import DataSource

PREFETCH_BATCHES = 4
READERS = 2  # Batches that are read at once.


@functools.lru_cache(maxsize=2)  # A batch touches two epochs at most while epochs are not tiny.
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """The order of one epoch, drawn by Philox from (seed, epoch): (num_examples,) int64."""
  bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
  order = np.random.Generator(bits).permutation(num_examples)
  order.flags.writeable = False
  return order


def example_indices(seed: int, num_examples: int, positions: np.ndarray) -> np.ndarray:
  """Examples at global positions (n,), any of them: (n,) int64."""
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
  """The global batches of steps start_step..stop_step - 1, or of each the `rows` that a host holds.

  Closing the iterator ends what reads ahead.
  Raises: as carrier; what source.read raises, at the batch where it happened.
  """
  carry = carrier(loader)
  rows = np.arange(batch_size) if rows is None else rows

  def read(step):
    positions = int(step) * batch_size + rows
    return source.read(example_indices(seed, source.num_examples, positions))

  return carry(source, read, start_step, stop_step, len(rows))


def carrier(loader: str) -> Callable[..., Generator[dict[str, np.ndarray], None, None]]:
  """Returns what delivers batches for a config.data.loader. Raises: InputError for 'tf' without TensorFlow."""
  if loader == 'tf':
    packages.require('tensorflow', 'tf', "config.data.loader: 'tf'", "use 'threads'")
  if loader == 'threads' or not packages.is_installed('tensorflow'):
    return _by_threads
  return _by_tf


def evaluation_batches(
  source: DataSource, *, batch_size: int, rows: np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
  """Every example once, in order, with 'index' (-1 where the last batch is padded).

  rows: those of each batch that this host holds.
  """
  rows = np.arange(batch_size) if rows is None else rows
  for first in range(0, source.num_examples, batch_size):
    index = first + rows
    valid = index < source.num_examples
    batch = source.read(np.where(valid, index, 0))
    yield {**batch, 'index': np.where(valid, index, -1)}


@dataclasses.dataclass(frozen=True)
class Numbers:
  """A source that delivers the numbers of examples instead of reading them.

  For data that lives on the device already: the same order, gathered there.
  """

  source: DataSource

  @property
  def num_examples(self) -> int:
    return self.source.num_examples

  @property
  def label_names(self) -> Sequence[str]:
    return self.source.label_names

  @property
  def fingerprint(self) -> str:
    return self.source.fingerprint

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {'number': jax.ShapeDtypeStruct((), np.int32)}

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {'number': indices.astype(np.int32)}


def _by_threads(source, read, start, stop, local):
  del local
  names, ahead = sorted(source.element), collections.deque()
  with ThreadPoolExecutor(READERS, 'batches') as pool:
    try:
      for step in range(start, stop):
        ahead.append(pool.submit(read, step))
        if len(ahead) > PREFETCH_BATCHES:
          batch = ahead.popleft().result()
          yield {name: batch[name] for name in names}
      while ahead:
        batch = ahead.popleft().result()
        yield {name: batch[name] for name in names}
    finally:
      for reading in ahead:
        reading.cancel()


def _by_tf(source, read, start, stop, local):
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')  # The accelerator belongs to JAX.
  names, failed = sorted(source.element), []
  specs = [tf.TensorSpec((local, *source.element[n].shape), source.element[n].dtype) for n in names]

  def arrays(step):
    try:
      return list(map(read(step).get, names))
    except Exception as error:  # TensorFlow passes on no more than its text.
      failed.append(error)
      raise

  def load(step):
    found = tf.numpy_function(arrays, [step], [spec.dtype for spec in specs], stateful=False)
    return {n: tf.ensure_shape(a, spec.shape) for n, a, spec in zip(names, found, specs)}

  dataset = tf.data.Dataset.range(start, stop)
  dataset = dataset.map(load, num_parallel_calls=READERS, deterministic=True)
  options = tf.data.Options()
  options.autotune.enabled = False
  dataset = dataset.prefetch(PREFETCH_BATCHES).with_options(options)
  try:
    yield from dataset.as_numpy_iterator()
  except tf.errors.OpError as error:
    raise (failed[0] if failed else error) from None
