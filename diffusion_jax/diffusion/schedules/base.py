"""Discrete noise schedules, their time grids, and the training distributions of t.

A discrete schedule of T steps is a table of alpha_bar at the indices i = 0..T with
alpha_bar(0) = 1, so that the last sampling step lands on clean data. Time is t = i / T. The
network is given the published checkpoints' timestep i - 1 in 0..T-1. Between indices
log_snr = log(alpha_bar / (1 - alpha_bar)) is interpolated linearly; in the first cell, where it is
infinite at one end, sigma is.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import Check
from diffusion_jax.types import Array, NoiseLevel

SPACINGS = ('trailing', 'leading', 'linspace')
MAX_TIMESTEPS = 100_000  # Publications have 1,000 to 4,000.
TIMESTEPS = Check(lambda n: 1 <= n <= MAX_TIMESTEPS, f'1..{MAX_TIMESTEPS}')  # Of a table.
TIME_DISTRIBUTIONS = ('uniform', 'logit_normal')


@dataclasses.dataclass(frozen=True)
class TimeDistribution:
  """Training distribution of u in (0, 1): uniform, or sigmoid(N(mean, std^2)) (arXiv:2403.03206, Eq. 19)."""

  name: str
  logit_mean: float
  logit_std: float

  def __post_init__(self):
    if self.name not in TIME_DISTRIBUTIONS:
      raise ValueError(f'time_distribution: got {self.name!r}, allowed {TIME_DISTRIBUTIONS}')
    if self.logit_std <= 0:
      raise ValueError(f'logit_std: got {self.logit_std}, allowed > 0')

  def sample(self, key: Array, shape: Sequence[int]) -> Array:
    """float32 in (0, 1)."""
    if self.name == 'uniform':
      tiny = jnp.finfo(jnp.float32).tiny
      return jax.random.uniform(key, shape, jnp.float32, minval=tiny)
    normal = jax.random.normal(key, shape, jnp.float32)
    return jax.nn.sigmoid(self.logit_mean + self.logit_std * normal)


def index_grid(num_timesteps: int, num_steps: int, spacing: str) -> np.ndarray:
  """Indices from noise to data: (num_steps + 1,) int64, strictly decreasing, the last is 0.

  trailing starts at T; leading is the original DDIM code's stride (it starts below T); linspace
  goes evenly from T to 1. See Lin et al. 2024, arXiv:2305.08891, Table 2.

  Raises: ValueError for an unknown spacing or num_steps outside 1..T.
  """
  if not 1 <= num_steps <= num_timesteps:
    nearest = min(max(num_steps, 1), num_timesteps)
    raise ValueError(f'num_steps: got {num_steps}, allowed 1..{num_timesteps} (nearest {nearest})')
  if spacing == 'trailing':
    # T - k T / N, rounded half to even in exact arithmetic up to float64.
    indices = np.round(np.arange(num_steps, 0, -1) * num_timesteps / num_steps)
  elif spacing == 'leading':
    indices = np.arange(num_steps - 1, -1, -1) * (num_timesteps // num_steps) + 1
  elif spacing == 'linspace':
    indices = np.round(np.linspace(num_timesteps, 1, num_steps))
  else:
    raise ValueError(f'spacing: got {spacing!r}, allowed {SPACINGS}')
  return np.append(indices.astype(np.int64), 0)


def require_beta_range(beta_start: float, beta_end: float) -> None:
  """Raises: ValueError unless 0 < beta_start <= beta_end < 1."""
  if not 0 < beta_start <= beta_end < 1:
    raise ValueError(
      f'beta_start: got {beta_start} with beta_end {beta_end}, allowed 0 < beta_start <= beta_end < 1'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteSchedule:
  """A table of alpha_bar (T + 1,) float64, alpha_bar[0] = 1, strictly decreasing."""

  alpha_bar: np.ndarray
  time_distribution: TimeDistribution

  @classmethod
  def from_betas(cls, betas: np.ndarray, time_distribution: TimeDistribution) -> 'DiscreteSchedule':
    """alpha_bar(i) = prod_{j <= i} (1 - beta_j) (Ho et al. 2020, arXiv:2006.11239, Eq. 4).

    Raises: ValueError without betas.
    """
    if len(betas) < 1:
      raise ValueError(f'num_timesteps: got {len(betas)}, allowed >= 1')
    return cls(np.concatenate([[1.0], np.cumprod(1.0 - betas)]), time_distribution)

  @property
  def num_timesteps(self) -> int:
    return len(self.alpha_bar) - 1

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (alpha, sigma) of that shape, alpha^2 + sigma^2 = 1."""
    index = self._index(t)
    below = jnp.clip(jnp.floor(index), 0, self.num_timesteps - 1).astype(jnp.int32)
    fraction = index - below
    first_cell = below == 0
    log_snr = np.log(self.alpha_bar[1:]) - np.log1p(-self.alpha_bar[1:])  # at indices 1..T
    table = jnp.asarray(np.append(log_snr[0], log_snr), index.dtype)  # entry 0 is never used
    interpolated = table[below] * (1 - fraction) + table[below + 1] * fraction
    sigma_first = fraction * np.sqrt(1 - self.alpha_bar[1]).astype(index.dtype)
    sigma = jnp.where(first_cell, sigma_first, jnp.sqrt(jax.nn.sigmoid(-interpolated)))
    alpha = jnp.where(
      first_cell, jnp.sqrt(1 - sigma_first**2), jnp.sqrt(jax.nn.sigmoid(interpolated))
    )
    return NoiseLevel(alpha, sigma)

  def network_time(self, t: Array) -> Array:
    """The timestep i - 1, float; an exact integer wherever t is on the table."""
    return self._index(t) - 1

  def sample_t(self, key: Array, shape: Sequence[int]) -> Array:
    """t = i / T with i in 1..T: never clean data."""
    u = self.time_distribution.sample(key, shape)
    return jnp.clip(jnp.ceil(u * self.num_timesteps), 1, self.num_timesteps) / self.num_timesteps

  def grid(self, num_steps: int, spacing: str) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data; see index_grid."""
    return index_grid(self.num_timesteps, num_steps, spacing) / self.num_timesteps

  def _index(self, t: Array) -> Array:
    """t T, with what float rounding moved off an integer put back on it."""
    index = jnp.asarray(t) * self.num_timesteps
    nearest = jnp.round(index)
    slack = 4 * jnp.finfo(index.dtype).eps * self.num_timesteps
    return jnp.where(jnp.abs(index - nearest) <= slack, nearest, index)
