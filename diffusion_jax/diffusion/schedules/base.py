"""Discrete noise schedules: tables over T steps.

A discrete schedule of T steps is a table of alpha_bar at the indices i = 0..T with
alpha_bar(0) = 1, so that the last sampling step lands on clean data. Time is t = i / T. The
network is given the published checkpoints' timestep i - 1 in 0..T-1. Between indices
log_snr = log(alpha_bar / (1 - alpha_bar)) is interpolated linearly; in the first cell, where it is
infinite at one end, sigma is.

With zero terminal SNR (Lin et al. 2024, arXiv:2305.08891, Algorithm 1) sqrt(alpha_bar) is shifted and scaled
so that its first value stays and its last is 0: x_T holds nothing of x0. In the last cell, where log_snr is
infinite too, alpha is interpolated.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import Check, option
from diffusion_jax.types import Array, NoiseLevel

MAX_TIMESTEPS = 100_000  # Publications have 1,000 to 4,000.
TIMESTEPS = Check(lambda n: 1 <= n <= MAX_TIMESTEPS, f'1..{MAX_TIMESTEPS}')  # In a table.


def zero_terminal_snr_option() -> bool:
  """Declares zero_terminal_snr, which every table has."""
  return option(
    False, 'Whether alpha is 0 at t = 1 (Lin et al. 2024); not for networks that predict eps.'
  )


def require_beta_range(beta_start: float, beta_end: float) -> None:
  """Raises: ValueError unless 0 < beta_start <= beta_end < 1."""
  if not 0 < beta_start <= beta_end < 1:
    raise ValueError(
      f'beta_start: got {beta_start} with beta_end {beta_end}, allowed 0 < beta_start <= beta_end < 1'
    )


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteSchedule:
  """A table of alpha_bar (T + 1,) float64, alpha_bar[0] = 1, strictly decreasing; the last may be 0."""

  alpha_bar: np.ndarray

  @classmethod
  def from_betas(cls, betas: np.ndarray, zero_terminal_snr: bool = False) -> 'DiscreteSchedule':
    """alpha_bar(i) = prod_{j <= i} (1 - beta_j) (Ho et al. 2020, arXiv:2006.11239, Eq. 4).

    Raises: ValueError without betas, or with a single one that has to stay and to become 0.
    """
    least = 2 if zero_terminal_snr else 1
    if len(betas) < least:
      raise ValueError(f'num_timesteps: got {len(betas)}, allowed >= {least}')
    alpha_bar = np.cumprod(1.0 - betas)
    if zero_terminal_snr:
      first, last = np.sqrt(alpha_bar[[0, -1]])
      alpha_bar = ((np.sqrt(alpha_bar) - last) * first / (first - last)) ** 2
    return cls(np.concatenate([[1.0], alpha_bar]))

  @property
  def num_timesteps(self) -> int:
    return len(self.alpha_bar) - 1

  @property
  def _ends_at_zero(self) -> bool:
    return self.alpha_bar[-1] == 0

  @property
  def _log_snr(self) -> np.ndarray:
    """(T,) float64, decreasing: that of the indices 1..T. The last is -inf with zero terminal SNR."""
    with np.errstate(divide='ignore'):
      return np.log(self.alpha_bar[1:]) - np.log1p(-self.alpha_bar[1:])

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (alpha, sigma) of that shape, alpha^2 + sigma^2 = 1."""
    index = self._index(t)
    below = jnp.clip(jnp.floor(index), 0, self.num_timesteps - 1).astype(jnp.int32)
    fraction = index - below
    first_cell = below == 0
    log_snr = self._log_snr
    if self._ends_at_zero:
      log_snr[-1] = log_snr[-2]  # Never used, like entry 0.
    table = jnp.asarray(np.append(log_snr[0], log_snr), index.dtype)
    interpolated = table[below] * (1 - fraction) + table[below + 1] * fraction
    sigma_first = fraction * np.sqrt(1 - self.alpha_bar[1]).astype(index.dtype)
    sigma = jnp.where(first_cell, sigma_first, jnp.sqrt(jax.nn.sigmoid(-interpolated)))
    alpha = jnp.where(
      first_cell, jnp.sqrt(1 - sigma_first**2), jnp.sqrt(jax.nn.sigmoid(interpolated))
    )
    if self._ends_at_zero:
      last_cell = below == self.num_timesteps - 1
      alpha_last = (1 - fraction) * np.sqrt(self.alpha_bar[-2]).astype(index.dtype)
      alpha = jnp.where(last_cell, alpha_last, alpha)
      sigma = jnp.where(last_cell, jnp.sqrt(1 - alpha_last**2), sigma)
    return NoiseLevel(alpha, sigma)

  def network_time(self, t: Array) -> Array:
    """The timestep i - 1, float; an exact integer wherever t is on the table."""
    return self._index(t) - 1

  def time_at(self, log_snr: Array) -> Array:
    """The inverse: any shape -> t in [0, 1]; beyond the table's ends, the end."""
    table = jnp.asarray(self._log_snr[np.isfinite(self._log_snr)], log_snr.dtype)
    index = jnp.interp(-log_snr, -table, jnp.arange(1, len(table) + 1, dtype=table.dtype))
    if self._ends_at_zero:
      in_last_cell = self.num_timesteps - jnp.sqrt(jax.nn.sigmoid(log_snr) / self.alpha_bar[-2])
      index = jnp.where(log_snr < table[-1], in_last_cell, index)
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
