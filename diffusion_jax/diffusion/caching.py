"""Steps of sampling that forecast what a transformer's blocks add, instead of running them.

Reuse at intervals is FORA (Selvaraju et al. 2024, arXiv:2407.01425), Taylor forecasts are TaylorSeer (Liu et
al. 2025, arXiv:2503.06923). What the blocks add is the sum of the gated outputs of their layers. A forecast is
linear in what it is made of, so that of the sum is the sum of those of the layers: one array instead of two a
block, with the same result. What stands before and after the blocks runs in every step.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import COUNT, Check, option, require_options
from diffusion_jax.diffusion.forecast import History, forecast, no_history, observe
from diffusion_jax.types import Array, CachableNetwork, Condition, Network


@dataclasses.dataclass(frozen=True)
class Caching:
  """Which steps run the blocks, and how the others do without."""

  interval: int = option(
    1,
    'Steps of which one runs the blocks of a DiT; the others forecast what they add. 1: all run.',
    COUNT,
  )
  order: int = option(
    1,
    'Order of the forecast from the steps before; 0 reuses the last.',
    Check(lambda n: 0 <= n <= 3, '0..3'),
  )
  first: int = option(3, 'Steps from the first on that all run the blocks.', COUNT)

  def __post_init__(self):
    require_options(self)

  def runs(self, step: Array) -> Array:
    """Whether the blocks run in this step, counted from 0; any shape."""
    return (step < self.first) | ((step - self.first + 1) % self.interval == 0)

  def share(self, num_steps: int) -> float:
    """The share of steps in which they do."""
    return float(np.mean(self.runs(np.arange(num_steps))))


class Cache(NamedTuple):
  """What blocks added so far, (B, rows, N, d) of the rows that an example has in a batch; step: the next."""

  history: History
  step: Array


def no_cache(caching: Caching, shape: tuple[int, ...]) -> Cache:
  """Before the first step; shape (B, rows, N, d)."""
  return Cache(no_history(shape, caching.order), jnp.int32(0))


def caching_network(
  network: CachableNetwork, caching: Caching, cache: Cache, made: list[Cache]
) -> Network:
  """The network of one step; a call puts the cache of the next step into `made`."""

  def apply(x: Array, time: Array, condition: Condition) -> Array:
    def run(history: History) -> tuple[Array, History]:
      output, residual = network(x, time, condition, None)
      return output, observe(history, residual.reshape(history.derivatives[0].shape), cache.step)

    def reuse(history: History) -> tuple[Array, History]:
      found = forecast(history, cache.step)  # (B, rows, N, d)
      return network(x, time, condition, found.reshape(-1, *found.shape[2:]))[0], history

    output, history = jax.lax.cond(caching.runs(cache.step), run, reuse, cache.history)
    made.append(Cache(history, cache.step + 1))
    return output

  return apply
