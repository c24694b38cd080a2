"""Times even in t, shifted to noise (Esser et al. 2024, arXiv:2403.03206, Eq. 23)."""

import dataclasses

import numpy as np

from diffusion_jax.config.options import POSITIVE, option, require_options
from diffusion_jax.diffusion.spacings.base import require_steps
from diffusion_jax.types import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Shifted:
  """shift u / (1 + (shift - 1) u) for even u from 1 to 1/N, then clean data: on no table.

  With more steps than a table has entries, the last time above clean data is that of its first entry.
  """

  shift: float = option(
    3.0, 'Above 1, more of the steps are taken where there is much noise; 1 is even.', POSITIVE
  )

  def __post_init__(self):
    require_options(self)

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data. Raises: ValueError as require_steps."""
    require_steps(num_steps)
    last = 1 / num_steps
    if schedule.num_timesteps:
      first_entry = 1 / schedule.num_timesteps
      last = max(last, first_entry / (self.shift - (self.shift - 1) * first_entry))  # The inverse.
    even = np.linspace(1, last, num_steps)
    return np.append(self.shift * even / (1 + (self.shift - 1) * even), 0)
