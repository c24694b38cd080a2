"""The probability flow in the half log SNR, which fast solvers share (Lu et al. 2022, arXiv:2211.01095).

With l = log(alpha / sigma), the flow from time t to s has the exact solution (Proposition 4.1)
  x_s = sigma_s / sigma_t x_t + sigma_s integral of e^l x0(l) dl from l_t to l_s
so only x0 as a function of l has to be approximated. A constant x0 is integrated exactly; that is DDIM.
"""

import jax.numpy as jnp

from diffusion_jax.types import Array, NoiseLevel


def half_log_snr(level: NoiseLevel) -> Array:
  """log(alpha / sigma): -inf at alpha = 0, inf at sigma = 0."""
  return jnp.log(level.alpha) - jnp.log(level.sigma)


def constant_step(n_t: NoiseLevel, n_s: NoiseLevel, x_t: Array, x0: Array) -> Array:
  """x_s for an x0 that does not change between t and s; finite at alpha_t = 0 and at sigma_s = 0."""
  keep = n_s.sigma / n_t.sigma
  return keep * x_t + (n_s.alpha - keep * n_t.alpha) * x0
