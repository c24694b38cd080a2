"""Shared by the spacings of sampling times. A spacing: (schedule, num_steps) -> times, noise first.

Those that stride a table stay on its entries, so they have at most as many steps; the continuous ones have any
number.
"""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import POSITIVE, option
from diffusion_jax.types import NoiseSchedule


def sigma_min_option() -> float:
  """Declares sigma_min, where spacings in sigma / alpha end."""
  return option(
    0.002,
    'The last sigma / alpha above clean data, at least that of the first table entry.',
    POSITIVE,
  )


def require_steps(num_steps: int) -> None:
  """Raises: ValueError for num_steps below 1."""
  if num_steps < 1:
    raise ValueError(f'num_steps: got {num_steps}, allowed >= 1')


def require_strides(schedule: NoiseSchedule, num_steps: int) -> None:
  """Raises: ValueError for num_steps below 1, or above the entries of the schedule's table."""
  most = schedule.num_timesteps
  if most and not 1 <= num_steps <= most:
    nearest = min(max(num_steps, 1), most)
    raise ValueError(
      f'num_steps: got {num_steps}, allowed 1..{most} (nearest {nearest}), or any number with a spacing that '
      "does not stride the table, such as 'shifted'"
    )
  require_steps(num_steps)


def even_times(num_steps: int) -> np.ndarray:
  """(num_steps + 1,) float64 from 1 to 0."""
  return np.arange(num_steps, -1, -1) / num_steps


def on_table(schedule: NoiseSchedule, indices: np.ndarray) -> np.ndarray:
  """The times of decreasing indices 1..T of the schedule's table, then 0: float64."""
  return np.append(indices.astype(np.int64), 0) / schedule.num_timesteps


def lowest_level(schedule: NoiseSchedule, sigma_min: float) -> float:
  """sigma_min, or sigma / alpha of the first entry of a table: the network knows nothing below it."""
  if not schedule.num_timesteps:
    return sigma_min
  alpha, sigma = (float(x) for x in schedule(jnp.float32(1 / schedule.num_timesteps)))
  return max(sigma_min, sigma / alpha)


def times_at(schedule: NoiseSchedule, levels: np.ndarray) -> np.ndarray:
  """The times of decreasing levels sigma / alpha, then 0: float64."""
  times = np.asarray(schedule.time_at(jnp.float32(-2 * np.log(levels))), np.float64)
  return np.append(np.minimum(times, 1), 0)
