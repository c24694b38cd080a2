"""Order and delivery of batches.

The order is a pure function of (seed, step): global position p is example
perm(seed, epoch)[p mod N] of epoch p // N. Nothing is remembered between steps, so starting at
step 10^9 costs what starting at 0 costs. tf.data carries it: range of steps -> read -> prefetch.
"""

import functools
from collections.abc import Iterator

import numpy as np

from diffusion_jax.types import DataSource

PREFETCH_BATCHES = 4


@functools.lru_cache(maxsize=2)  # A batch touches two epochs at most while epochs are not tiny.
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """The order of one epoch, drawn by Philox from (seed, epoch): (num_examples,) int64."""
  bits = np.random.Philox(np.random.SeedSequence([seed, epoch]))
  order = np.random.Generator(bits).permutation(num_examples)
  order.flags.writeable = False
  return order


def example_indices(seed: int, num_examples: int, start: int, stop: int) -> np.ndarray:
  """Examples at the global positions start..stop - 1: (stop - start,) int64."""
  positions = np.arange(start, stop)
  epochs, offsets = np.divmod(positions, num_examples)
  indices = np.empty_like(positions)
  for epoch in range(epochs[0], epochs[-1] + 1):
    here = epochs == epoch
    indices[here] = permutation(seed, epoch, num_examples)[offsets[here]]
  return indices


def train_batches(
  source: DataSource,
  *,
  seed: int,
  batch_size: int,
  start_step: int,
  stop_step: int,
  host: int = 0,
  num_hosts: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """This host's slice of the global batches of steps start_step..stop_step - 1, each read once.

  batch_size is global and divisible by num_hosts; host h reads the h-th contiguous part.
  """
  local = batch_size // num_hosts

  def read(step):
    first = int(step) * batch_size + host * local
    return source.read(example_indices(seed, source.num_examples, first, first + local))

  return _tf_iterator(source, read, start_step, stop_step, local)


def evaluation_batches(
  source: DataSource, *, batch_size: int, host: int = 0, num_hosts: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """Every example once, in order, with 'index' (-1 where the last batch is padded)."""
  local = batch_size // num_hosts
  num_batches = -(-source.num_examples // batch_size)
  for step in range(num_batches):
    first = step * batch_size + host * local
    index = np.arange(first, first + local)
    valid = index < source.num_examples
    batch = source.read(np.where(valid, index, 0))
    yield {**batch, 'index': np.where(valid, index, -1)}


def _tf_iterator(source, read, start, stop, local):
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')  # The accelerator belongs to JAX.
  names = sorted(source.element)
  specs = [tf.TensorSpec((local, *source.element[n].shape), source.element[n].dtype) for n in names]

  def load(step):
    arrays = tf.numpy_function(
      lambda s: list(map(read(s).get, names)),
      [step],
      [spec.dtype for spec in specs],
      stateful=False,
    )
    return {n: tf.ensure_shape(a, spec.shape) for n, a, spec in zip(names, arrays, specs)}

  dataset = tf.data.Dataset.range(start, stop)
  dataset = dataset.map(load, num_parallel_calls=2, deterministic=True).prefetch(PREFETCH_BATCHES)
  options = tf.data.Options()
  options.autotune.enabled = False
  return dataset.with_options(options).as_numpy_iterator()
