"""Linear betas (Ho et al. 2020, arXiv:2006.11239, Section 4)."""

import numpy as np

from diffusion_jax.diffusion.schedules.base import (
  DiscreteSchedule,
  TimeDistribution,
  require_beta_range,
  require_num_timesteps,
)


def build(
  *,
  num_timesteps: int,
  beta_start: float,
  beta_end: float,
  time_distribution: str,
  logit_mean: float,
  logit_std: float,
) -> DiscreteSchedule:
  """beta evenly spaced from beta_start to beta_end over num_timesteps."""
  require_num_timesteps(num_timesteps)
  require_beta_range(beta_start, beta_end)
  betas = np.linspace(beta_start, beta_end, num_timesteps)
  return DiscreteSchedule.from_betas(
    betas, TimeDistribution(time_distribution, logit_mean, logit_std)
  )
