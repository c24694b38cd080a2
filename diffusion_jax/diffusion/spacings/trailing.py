"""Times that start at t = 1 and are even (Lin et al. 2024, arXiv:2305.08891, Table 2)."""

import dataclasses

import numpy as np

from diffusion_jax.diffusion.spacings.base import even_times, on_table, require_strides
from diffusion_jax.types import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Trailing:
  """T - k T / N, rounded half to even, on a table of T."""

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data. Raises: ValueError as require_strides."""
    require_strides(schedule, num_steps)
    if not schedule.num_timesteps:
      return even_times(num_steps)
    indices = np.arange(num_steps, 0, -1) * schedule.num_timesteps / num_steps
    return on_table(schedule, np.round(indices))
