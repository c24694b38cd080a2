"""Discrete noise schedules: tables over T steps.

A discrete schedule of T steps is a table of alpha_bar at the indices i = 0..T with
alpha_bar(0) = 1, so that the last sampling step lands on clean data. Time is t = i / T. The
network is given the published checkpoints' timestep i - 1 in 0..T-1. Between indices
log_snr = log(alpha_bar / (1 - alpha_bar)) is interpolated linearly; in the first cell, where it is
infinite at one end, sigma is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import Check
from diffusion_jax.types import Array, NoiseLevel

MAX_TIMESTEPS = 100_000  # Publications have 1,000 to 4,000.
TIMESTEPS = Check(lambda n: 1 <= n <= MAX_TIMESTEPS, f'1..{MAX_TIMESTEPS}')  # In a table.


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

  @classmethod
  def from_betas(cls, betas: np.ndarray) -> 'DiscreteSchedule':
    """alpha_bar(i) = prod_{j <= i} (1 - beta_j) (Ho et al. 2020, arXiv:2006.11239, Eq. 4).

    Raises: ValueError without betas.
    """
    if len(betas) < 1:
      raise ValueError(f'num_timesteps: got {len(betas)}, allowed >= 1')
    return cls(np.concatenate([[1.0], np.cumprod(1.0 - betas)]))

  @property
  def num_timesteps(self) -> int:
    return len(self.alpha_bar) - 1

  @property
  def _log_snr(self) -> np.ndarray:
    """(T,) float64, decreasing: that of the indices 1..T."""
    return np.log(self.alpha_bar[1:]) - np.log1p(-self.alpha_bar[1:])

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (alpha, sigma) of that shape, alpha^2 + sigma^2 = 1."""
    index = self._index(t)
    below = jnp.clip(jnp.floor(index), 0, self.num_timesteps - 1).astype(jnp.int32)
    fraction = index - below
    first_cell = below == 0
    log_snr = self._log_snr
    table = jnp.asarray(np.append(log_snr[0], log_snr), index.dtype)  # Entry 0 is never used.
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

  def time_at(self, log_snr: Array) -> Array:
    """The inverse: any shape -> t in [0, 1]; beyond the table's ends, the end."""
    table = jnp.asarray(self._log_snr, log_snr.dtype)
    index = jnp.interp(-log_snr, -table, jnp.arange(1, self.num_timesteps + 1, dtype=table.dtype))
    in_first_cell = jnp.sqrt(jax.nn.sigmoid(-log_snr) / (1 - self.alpha_bar[1]))
    return jnp.where(log_snr > table[0], in_first_cell, index) / self.num_timesteps

  def snap(self, t: Array) -> Array:
    """The next entry i / T of the table, i in 1..T: never clean data."""
    return jnp.clip(jnp.ceil(t * self.num_timesteps), 1, self.num_timesteps) / self.num_timesteps

  def _index(self, t: Array) -> Array:
    """t T, with what float rounding moved off an integer put back on it."""
    index = jnp.asarray(t) * self.num_timesteps
    nearest = jnp.round(index)
    slack = 4 * jnp.finfo(index.dtype).eps * self.num_timesteps
    return jnp.where(jnp.abs(index - nearest) <= slack, nearest, index)
