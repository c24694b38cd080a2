"""Linear betas (Ho et al. 2020, arXiv:2006.11239, Section 4)."""

import dataclasses

import numpy as np

from diffusion_jax.config.options import option, require_options
from diffusion_jax.diffusion.schedules.base import (
  TIMESTEPS,
  DiscreteSchedule,
  require_beta_range,
  zero_terminal_snr_option,
)


@dataclasses.dataclass(frozen=True)
class Linear:
  """beta evenly spaced from beta_start to beta_end over num_timesteps."""

  num_timesteps: int = option(1000, 'Steps of the table.', TIMESTEPS)
  beta_start: float = option(1e-4, 'First beta, of the least noise.')
  beta_end: float = option(0.02, 'Last beta; 0 < beta_start <= beta_end < 1.')
  zero_terminal_snr: bool = zero_terminal_snr_option()

  def __post_init__(self):
    require_options(self)
    require_beta_range(self.beta_start, self.beta_end)

  def build(self) -> DiscreteSchedule:
    """The table of these betas."""
    betas = np.linspace(self.beta_start, self.beta_end, self.num_timesteps)
    return DiscreteSchedule.from_betas(betas, self.zero_terminal_snr)
