"""Heun's second-order method with churn (Karras et al. 2022, arXiv:2206.00364, Algorithms 1 and 2).

For a weight w of the noise level, y = x / w moves along a straight line in c = sigma / w as long as x0 stays:
  w = alpha           dy/dc = eps         c is EDM's sigma
  w = alpha + sigma   dy/dc = eps - x0    c is t on rectified flow, and stays within 0..1
Euler's step is x' = alpha_s x0 + sigma_s eps for both. Heun's method evaluates there again and takes the mean
of both slopes. As x' is also alpha_s x0' + sigma_s eps', the difference of the slopes is one of x0' - x0, and
  x_s = x' + w_s / w_t (alpha_s sigma_t / sigma_s - alpha_t) / 2 (x0' - x0).
With the first weight the last factor grows with sigma_t / alpha_t, without bound where alpha ends at or near 0:
steps from above HIGHEST are taken with the second one.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_jax.config.options import one_of, option
from diffusion_jax.diffusion.samplers.churn import Churned
from diffusion_jax.types import Array, Denoiser, NoiseLevel, PyTree

HIGHEST = 1000.0  # sigma / alpha; EDM's schedules start at 80.


@dataclasses.dataclass(frozen=True)
class Heun(Churned):
  """Two evaluations a step, one in the step to clean data, which is Euler's."""

  variable: str = option(
    'flow',
    "What is stepped in: 'flow' is sigma / (alpha + sigma), which is t on rectified flow; 'sigma' is EDM's "
    'sigma / alpha.',
    one_of('flow', 'sigma'),
  )

  def evaluations(self, num_steps: int) -> int:
    """Two a step; the last one, to clean data, has one."""
    return 2 * num_steps - 1

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: PyTree
  ) -> tuple[Array, PyTree]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,), unused without churn."""
    x_t, t, n_t = self.churn(keys, x_t, t, carry)
    n_s, first = self.schedule(s), denoise(x_t, t)
    euler = n_s.alpha * first.x0 + n_s.sigma * first.eps

    def heun():
      weight = self._weight(n_s, n_t) / self._weight(n_t, n_t)
      weight *= (n_s.alpha * n_t.sigma / n_s.sigma - n_t.alpha) / 2
      return euler + weight * (denoise(euler, s).x0 - first.x0)

    return jax.lax.cond(n_s.sigma > 0, heun, lambda: euler), carry

  def _weight(self, level: NoiseLevel, start: NoiseLevel) -> Array:
    """w at a level, for the step from `start`."""
    flow = level.alpha + level.sigma
    if self.variable == 'flow':
      return flow
    return jnp.where(start.sigma <= HIGHEST * start.alpha, level.alpha, flow)
