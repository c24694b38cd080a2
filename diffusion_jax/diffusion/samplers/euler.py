"""Euler's method in sigma / alpha with churn (Karras et al. 2022, arXiv:2206.00364, Algorithm 2).

With y = x / alpha and s = sigma / alpha the flow is dy/ds = eps, so a step is x_s = alpha_s x0 + sigma_s eps.
That is DDIM without noise, and on rectified flow it is Euler's method in t, x_s = x_t + (s - t) (eps - x0): one
map under three names. What is added here is churn.
"""

import dataclasses

from diffusion_jax.diffusion.samplers.churn import Churned
from diffusion_jax.types import Array, Denoiser, PyTree


@dataclasses.dataclass(frozen=True)
class Euler(Churned):
  """First order, one evaluation a step; finite where alpha = 0 or sigma = 0."""

  def evaluations(self, num_steps: int) -> int:
    """One a step."""
    return num_steps

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: PyTree
  ) -> tuple[Array, PyTree]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,), unused without churn."""
    x_t, t, _ = self.churn(keys, x_t, t, carry)
    prediction, n_s = denoise(x_t, t), self.schedule(s)
    return n_s.alpha * prediction.x0 + n_s.sigma * prediction.eps, carry
