"""Times from the first to the last entry of the table (Lin et al. 2024, arXiv:2305.08891, Table 2)."""

import dataclasses

import numpy as np

from diffusion_jax.diffusion.spacings.base import even_times, on_table, require_strides
from diffusion_jax.types import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Linspace:
  """Evenly from T to 1, rounded half to even, on a table of T; then clean data."""

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data. Raises: ValueError as require_strides."""
    require_strides(schedule, num_steps)
    if not schedule.num_timesteps:
      return even_times(num_steps)
    return on_table(schedule, np.round(np.linspace(schedule.num_timesteps, 1, num_steps)))
