"""Linear betas (Ho et al. 2020, arXiv:2006.11239, Section 4)."""

import numpy as np

from diffusion_jax.diffusion.schedules.base import DiscreteSchedule, TimeDistribution


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
  if not 0 < beta_start <= beta_end < 1:
    raise ValueError(
      f'beta_start, beta_end: got {beta_start}, {beta_end}, allowed 0 < start <= end < 1'
    )
  betas = np.linspace(beta_start, beta_end, num_timesteps)
  return DiscreteSchedule.from_betas(
    betas, TimeDistribution(time_distribution, logit_mean, logit_std)
  )
