"""Training times whose logit is normal (Esser et al. 2024, arXiv:2403.03206, Eq. 19)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusion_jax.config.options import POSITIVE, option, require_options
from diffusion_jax.types import Array, NoiseSchedule


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """t = sigmoid(N(mean, std^2))."""

  mean: float = option(0.0, 'Mean of logit t; a higher one samples more noise.')
  std: float = option(1.0, 'Standard deviation of logit t.', POSITIVE)

  def __post_init__(self):
    require_options(self)

  def __call__(self, key: Array, shape: Sequence[int], schedule: NoiseSchedule) -> Array:
    """float32 in (0, 1)."""
    del schedule
    return jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, shape, jnp.float32))
