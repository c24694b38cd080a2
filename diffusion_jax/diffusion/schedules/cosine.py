"""Cosine alpha_bar (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17)."""

import numpy as np

from diffusion_jax.diffusion.schedules.base import (
  DiscreteSchedule,
  TimeDistribution,
  require_num_timesteps,
)


def build(
  *,
  num_timesteps: int,
  offset: float,
  max_beta: float,
  time_distribution: str,
  logit_mean: float,
  logit_std: float,
) -> DiscreteSchedule:
  """f(i) = cos^2((i/T + offset) / (1 + offset) * pi/2); beta_i = min(1 - f(i)/f(i-1), max_beta)."""
  require_num_timesteps(num_timesteps)
  if offset < 0:
    raise ValueError(f'offset: got {offset}, allowed >= 0')
  if not 0 < max_beta < 1:
    raise ValueError(f'max_beta: got {max_beta}, allowed between 0 and 1')
  i = np.arange(num_timesteps + 1)
  f = np.cos((i / num_timesteps + offset) / (1 + offset) * np.pi / 2) ** 2
  betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
  return DiscreteSchedule.from_betas(
    betas, TimeDistribution(time_distribution, logit_mean, logit_std)
  )
