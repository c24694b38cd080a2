"""Times even in log SNR (Lu et al. 2022, arXiv:2206.00927)."""

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
class LogSNR:
  """log(sigma / alpha) evenly from sigma_max, or t = 1 if there is less noise, to sigma_min; then clean data.

  The first time may be below t = 1, as alpha may be 0 there; what lies above sigma_max = 80 is only noise.
  """

  sigma_max: float = option(80.0, 'The highest sigma / alpha.', POSITIVE)
  sigma_min: float = sigma_min_option()

  def __post_init__(self):
    require_options(self)

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data.

    Raises: ValueError as require_steps, and unless sigma_min is below the highest level.
    """
    require_steps(num_steps)
    alpha, sigma = (float(value) for value in schedule(jnp.float32(1)))
    highest = min(self.sigma_max, sigma / alpha) if alpha else self.sigma_max
    lowest = lowest_level(schedule, self.sigma_min)
    if highest <= lowest:
      raise ValueError(
        f"spacing: got 'log_snr' from sigma / alpha {highest:g} to {lowest:g}, allowed with sigma_min below "
        'sigma_max, and inside what the schedule has'
      )
    return times_at(schedule, np.geomspace(highest, lowest, num_steps))
