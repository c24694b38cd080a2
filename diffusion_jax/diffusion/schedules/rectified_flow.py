"""The straight path x_t = (1 - t) x0 + t eps (Liu et al. 2023, arXiv:2209.03003, Eq. 1)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffusion_jax.config.options import POSITIVE, one_of, option, require_options
from diffusion_jax.diffusion.schedules.base import TimeDistribution
from diffusion_jax.types import Array, NoiseLevel


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
  """Continuous in t: no table, no largest number of steps."""

  time_distribution: str = option(
    'uniform', 'Of training times.', one_of('uniform', 'logit_normal')
  )
  logit_mean: float = option(0.0, 'Of logit_normal; higher is noisier.')
  logit_std: float = option(1.0, 'Of logit_normal.', POSITIVE)

  def __post_init__(self):
    require_options(self)

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (1 - t, t)."""
    return NoiseLevel(1 - t, t)

  def network_time(self, t: Array) -> Array:
    """1000 t, the range of the discrete schedules' timesteps."""
    return 1000.0 * t

  def sample_t(self, key: Array, shape: Sequence[int]) -> Array:
    """t in (0, 1)."""
    distribution = TimeDistribution(self.time_distribution, self.logit_mean, self.logit_std)
    return distribution.sample(key, shape)

  def grid(self, num_steps: int, spacing: str) -> np.ndarray:
    """(num_steps + 1,) float64 even times from 1 to 0.

    Raises: ValueError for num_steps < 1, and for spacing 'leading': there is no table to stride.
    """
    if num_steps < 1:
      raise ValueError(f'num_steps: got {num_steps}, allowed >= 1')
    if spacing not in ('trailing', 'linspace'):
      raise ValueError(
        f'spacing: got {spacing!r}, the straight path allows trailing and linspace (both are even)'
      )
    return np.arange(num_steps, -1, -1) / num_steps
