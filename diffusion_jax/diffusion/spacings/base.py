"""Shared by the spacings of sampling times. A spacing: (schedule, num_steps) -> times, noise first."""

import numpy as np

from diffusion_jax.types import NoiseSchedule


def require_steps(schedule: NoiseSchedule, num_steps: int) -> None:
  """Raises: ValueError for num_steps below 1, or above the entries of the schedule's table."""
  most = schedule.num_timesteps
  if num_steps < 1 or (most and num_steps > most):
    allowed = f'1..{most} (nearest {min(max(num_steps, 1), most)})' if most else '>= 1'
    raise ValueError(f'num_steps: got {num_steps}, allowed {allowed}')


def even_times(num_steps: int) -> np.ndarray:
  """(num_steps + 1,) float64 from 1 to 0."""
  return np.arange(num_steps, -1, -1) / num_steps


def on_table(schedule: NoiseSchedule, indices: np.ndarray) -> np.ndarray:
  """The times of decreasing indices 1..T of the schedule's table, then 0: float64."""
  return np.append(indices.astype(np.int64), 0) / schedule.num_timesteps
