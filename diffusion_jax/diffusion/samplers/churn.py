"""Noise that is added before a step (Karras et al. 2022, arXiv:2206.00364, Algorithm 2).

With y = x / alpha and s = sigma / alpha, a step from s first goes up to s' = (1 + gamma) s,
  y' = y + sqrt(s'^2 - s^2) s_noise z,    gamma = min(s_churn / N, sqrt(2) - 1) for s_tmin <= s <= s_tmax
and then down from s'. A time beyond the schedule's noisiest is not reached.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import NOT_NEGATIVE, POSITIVE, option, require_options
from diffusion_jax.randomness import normal_each
from diffusion_jax.types import Array, NoiseLevel, NoiseSchedule, PyTree


@dataclasses.dataclass(frozen=True)
class Churned:
  """A sampler with churn; the defaults of the levels are the paper's for ImageNet (Table 5)."""

  schedule: NoiseSchedule
  s_churn: float = option(
    0.0, 'Noise that is added on the way, over all steps; 0 is deterministic.', NOT_NEGATIVE
  )
  s_tmin: float = option(0.05, 'The lowest sigma / alpha with churn.', NOT_NEGATIVE)
  s_tmax: float = option(50.0, 'The highest sigma / alpha with churn.', POSITIVE)
  s_noise: float = option(1.003, 'Deviation of the noise that churn adds.', POSITIVE)

  def __post_init__(self):
    require_options(self)

  def init(self, x_T: Array, times: np.ndarray) -> PyTree:
    """gamma, a scalar; () without churn."""
    if not self.s_churn:
      return ()
    gamma = min(self.s_churn / (len(times) - 1), math.sqrt(2) - 1)
    return jnp.asarray(gamma, jnp.promote_types(x_T.dtype, jnp.float32))

  def churn(
    self, keys: Array, x_t: Array, t: Array, gamma: PyTree
  ) -> tuple[Array, Array, NoiseLevel]:
    """x_t (B,H,W,C) at scalar t -> x, t and noise level after noise was added; keys (B,)."""
    n_t = self.schedule(t)
    if not self.s_churn:
      return x_t, t, n_t
    s = n_t.sigma / n_t.alpha
    acts = (self.s_tmin <= s) & (s <= self.s_tmax) & jnp.isfinite(s)
    raised = jnp.where(acts, s * (1 + gamma), 1)
    t_up = jnp.where(acts, jnp.maximum(self.schedule.time_at(-2 * jnp.log(raised)), t), t)
    n_up = self.schedule(t_up)
    keep = jnp.where(acts, n_up.alpha / n_t.alpha, 1)
    variance = jnp.maximum(n_up.sigma**2 - (keep * n_t.sigma) ** 2, 0)
    noise = normal_each(keys, x_t.shape[1:]).astype(x_t.dtype)
    return keep * x_t + self.s_noise * jnp.sqrt(variance) * noise, t_up, n_up
