"""The variance-exploding process x_t = x0 + sigma eps (Karras et al. 2022, arXiv:2206.00364, Table 1)."""

import dataclasses

import jax.numpy as jnp

from diffusion_jax.config.options import POSITIVE, option, require_options
from diffusion_jax.types import Array, NoiseLevel


@dataclasses.dataclass(frozen=True)
class VarianceExploding:
  """sigma = sigma_max t, continuous in t."""

  sigma_max: float = option(80.0, 'Noise level at t = 1, where sampling starts.', POSITIVE)

  num_timesteps = 0

  def __post_init__(self):
    require_options(self)

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (1, sigma_max t)."""
    return NoiseLevel(jnp.ones_like(t), self.sigma_max * t)

  def time_at(self, log_snr: Array) -> Array:
    """The inverse: any shape -> t, above 1 beyond sigma_max."""
    return jnp.exp(-log_snr / 2) / self.sigma_max

  def network_time(self, t: Array) -> Array:
    """1000 t, the range of the discrete schedules' timesteps."""
    return 1000.0 * t

  def snap(self, t: Array) -> Array:
    """Every time can be trained on."""
    return t
