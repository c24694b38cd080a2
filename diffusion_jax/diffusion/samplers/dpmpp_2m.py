"""DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, Algorithm 2) and its SDE form.

With l = log(alpha / sigma), h = l_s - l_t and h' = l_t - l_r of the step before, from r, the solver keeps
  D = x0_t + h / (2 h') (x0_t - x0_r)
constant from t to s, at the cost of one evaluation: second order. The SDE form draws from the posterior
q(x_s | x_t, D), that is DDPM with D for x0. The first step has nothing before it, and the last one, to clean
data, has an infinite h: both are of first order, D = x0_t, as the paper prescribes. So is the second where
the first starts at alpha = 0.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import option, require_options
from diffusion_jax.diffusion.samplers.ddpm import posterior_mean, posterior_variance
from diffusion_jax.diffusion.samplers.exponential import constant_step, half_log_snr
from diffusion_jax.randomness import normal_each
from diffusion_jax.types import Array, Denoiser, NoiseSchedule


class Before(NamedTuple):
  """x0 (B,H,W,C) and log(alpha / sigma), a scalar, of the step before; -inf if there was none."""

  x0: Array
  half_log_snr: Array


@dataclasses.dataclass(frozen=True)
class DPMpp2M:
  """Second order in one evaluation a step; finite where alpha = 0 or sigma = 0."""

  schedule: NoiseSchedule
  sde: bool = option(False, 'Whether steps draw noise (the SDE form).')

  def __post_init__(self):
    require_options(self)

  def init(self, x_T: Array, times: np.ndarray) -> Before:
    """There is no step before the first."""
    del times
    dtype = jnp.promote_types(x_T.dtype, jnp.float32)
    return Before(jnp.zeros_like(x_T), jnp.asarray(-jnp.inf, dtype))

  def evaluations(self, num_steps: int) -> int:
    """One a step."""
    return num_steps

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: Before
  ) -> tuple[Array, Before]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,), unused without `sde`."""
    n_t, n_s = self.schedule(t), self.schedule(s)
    l_t, l_s = half_log_snr(n_t), half_log_snr(n_s)
    x0 = denoise(x_t, t).x0
    before, ahead = l_t - carry.half_log_snr, l_s - l_t  # Both negative from data to noise.
    second_order = jnp.isfinite(before) & jnp.isfinite(ahead) & (before * ahead > 0)
    ratio = jnp.where(second_order, ahead / before, 0)
    constant = x0 + ratio / 2 * (x0 - carry.x0)
    if self.sde:
      noise = normal_each(keys, x_t.shape[1:]).astype(x_t.dtype)
      x_s = posterior_mean(n_t, n_s, x_t, constant)
      x_s = x_s + jnp.sqrt(jnp.maximum(posterior_variance(n_t, n_s), 0)) * noise
    else:
      x_s = constant_step(n_t, n_s, x_t, constant)
    return x_s, Before(x0, l_t)
