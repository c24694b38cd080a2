"""Training times whose noise level is log-normal (Karras et al. 2022, arXiv:2206.00364, Table 1)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusion_jax.config.options import POSITIVE, option, require_options
from diffusion_jax.types import Array, NoiseSchedule


@dataclasses.dataclass(frozen=True)
class LogNormal:
  """ln(sigma / alpha) ~ N(mean, std^2), whatever the schedule."""

  mean: float = option(-1.2, 'Mean of ln(sigma / alpha), P_mean in the paper.')
  std: float = option(1.2, 'Standard deviation of ln(sigma / alpha), P_std.', POSITIVE)

  def __post_init__(self):
    require_options(self)

  def __call__(self, key: Array, shape: Sequence[int], schedule: NoiseSchedule) -> Array:
    """float32 in (0, 1]; levels beyond the schedule's last count as the last."""
    log_sigma = self.mean + self.std * jax.random.normal(key, shape, jnp.float32)
    return jnp.minimum(schedule.time_at(-2 * log_sigma), 1)
