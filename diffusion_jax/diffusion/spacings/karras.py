"""Times even in a power of the noise level (Karras et al. 2022, arXiv:2206.00364, Eq. 5)."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import POSITIVE, option, require_options
from diffusion_jax.diffusion.spacings.base import (
  lowest_level,
  require_steps,
  sigma_min_option,
  times_at,
)
from diffusion_jax.types import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Karras:
  """(sigma / alpha)^(1/rho) evenly from that at t = 1 to sigma_min^(1/rho); then clean data."""

  rho: float = option(7.0, 'A higher one takes shorter steps near the data.', POSITIVE)
  sigma_min: float = sigma_min_option()

  def __post_init__(self):
    require_options(self)

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data.

    Raises: ValueError as require_steps, and unless sigma_min < sigma / alpha < infinity at t = 1.
    """
    require_steps(num_steps)
    alpha, sigma = (float(value) for value in schedule(jnp.float32(1)))
    lowest = lowest_level(schedule, self.sigma_min)
    if alpha == 0 or sigma / alpha <= lowest:
      raise ValueError(
        f"spacing: got 'karras' with sigma_min {self.sigma_min:g}, but at t = 1 the schedule has alpha "
        f'{alpha:g} and sigma {sigma:g}; allowed with alpha > 0 and sigma / alpha > sigma_min'
      )
    ends = np.array([sigma / alpha, lowest]) ** (1 / self.rho)
    return times_at(schedule, np.linspace(*ends, num_steps) ** self.rho)
