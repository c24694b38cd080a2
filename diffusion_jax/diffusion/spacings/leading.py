"""The stride of the original DDIM code, which starts below t = 1 (arXiv:2305.08891, Table 2)."""

import dataclasses

import numpy as np

from diffusion_jax.diffusion.spacings.base import on_table, require_strides
from diffusion_jax.types import NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Leading:
  """k floor(T / N) + 1 on a table of T."""

  def __call__(self, schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """(num_steps + 1,) float64 times from noise to data.

    Raises: ValueError as require_strides, and for a schedule without a table to stride.
    """
    require_strides(schedule, num_steps)
    if not schedule.num_timesteps:
      raise ValueError(
        "spacing: got 'leading', allowed 'trailing' with a continuous schedule: it has no table to stride"
      )
    stride = schedule.num_timesteps // num_steps
    return on_table(schedule, np.arange(num_steps - 1, -1, -1) * stride + 1)
