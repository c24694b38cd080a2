"""Uniform training times (Ho et al. 2020, arXiv:2006.11239, Algorithm 1)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, NoiseSchedule


@dataclasses.dataclass(frozen=True)
class Uniform:
  """Every time is as likely as any other."""

  def __call__(self, key: Array, shape: Sequence[int], schedule: NoiseSchedule) -> Array:
    """float32 in (0, 1)."""
    del schedule
    return jax.random.uniform(key, shape, jnp.float32, minval=jnp.finfo(jnp.float32).tiny)
