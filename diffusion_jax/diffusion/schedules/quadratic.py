"""Betas whose square roots are linear, as in latent diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

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
  """sqrt(beta) evenly spaced from sqrt(beta_start) to sqrt(beta_end) over num_timesteps."""
  require_num_timesteps(num_timesteps)
  require_beta_range(beta_start, beta_end)
  betas = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
  return DiscreteSchedule.from_betas(
    betas, TimeDistribution(time_distribution, logit_mean, logit_std)
  )
