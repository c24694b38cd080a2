"""Cosine alpha_bar (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 17)."""

import dataclasses

import numpy as np

from diffusion_jax.config.options import (
  NOT_NEGATIVE,
  Check,
  option,
  require_options,
)
from diffusion_jax.diffusion.schedules.base import (
  TIMESTEPS,
  DiscreteSchedule,
  zero_terminal_snr_option,
)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """f(i) = cos^2((i/T + offset) / (1 + offset) * pi/2); beta_i = min(1 - f(i)/f(i-1), max_beta)."""

  num_timesteps: int = option(1000, 'Steps of the table.', TIMESTEPS)
  offset: float = option(0.008, 'Offset that keeps beta from vanishing near t = 0.', NOT_NEGATIVE)
  max_beta: float = option(
    0.999, 'Upper limit of beta.', Check(lambda beta: 0 < beta < 1, 'between 0 and 1')
  )
  zero_terminal_snr: bool = zero_terminal_snr_option()

  def __post_init__(self):
    require_options(self)

  def build(self) -> DiscreteSchedule:
    """The table of these betas."""
    num_timesteps, offset = self.num_timesteps, self.offset
    i = np.arange(num_timesteps + 1)
    f = np.cos((i / num_timesteps + offset) / (1 + offset) * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], self.max_beta)
    return DiscreteSchedule.from_betas(betas, self.zero_terminal_snr)
