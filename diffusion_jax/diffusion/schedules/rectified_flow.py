"""The straight path x_t = (1 - t) x0 + t eps (Liu et al. 2023, arXiv:2209.03003, Eq. 1)."""

import dataclasses

import jax

from diffusion_jax.types import Array, NoiseLevel


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
  """Continuous in t: no table, no largest number of steps."""

  num_timesteps = 0

  def __call__(self, t: Array) -> NoiseLevel:
    """t of any shape in [0, 1] -> (1 - t, t)."""
    return NoiseLevel(1 - t, t)

  def time_at(self, log_snr: Array) -> Array:
    """The inverse, sigmoid(-log_snr / 2): any shape -> t."""
    return jax.nn.sigmoid(-log_snr / 2)

  def network_time(self, t: Array) -> Array:
    """1000 t, the range of the discrete schedules' timesteps."""
    return 1000.0 * t

  def snap(self, t: Array) -> Array:
    """Every time can be trained on."""
    return t
