"""DDIM (Song et al. 2021, arXiv:2010.02502, Eq. 12): eta = 0 is deterministic, eta = 1 ancestral."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import Check, option, require_options
from diffusion_jax.diffusion.samplers.ddpm import posterior_variance
from diffusion_jax.randomness import normal_each
from diffusion_jax.types import Array, Denoiser, NoiseSchedule, PyTree


@dataclasses.dataclass(frozen=True)
class DDIM:
  """x_s = alpha_s x0 + sqrt(sigma_s^2 - noise^2) eps + noise z, noise^2 = eta^2 posterior variance."""

  schedule: NoiseSchedule
  eta: float = option(
    0.0,
    'Share of noise in a step: 0 is deterministic, 1 is like DDPM.',
    Check(lambda eta: 0 <= eta <= 1, '0..1'),
  )

  def __post_init__(self):
    require_options(self)

  def init(self, x_T: Array, times: np.ndarray) -> PyTree:
    """Nothing is carried."""
    del x_T, times
    return ()

  def evaluations(self, num_steps: int) -> int:
    """One a step."""
    return num_steps

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: PyTree
  ) -> tuple[Array, PyTree]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,), unused at eta = 0."""
    n_t, n_s = self.schedule(t), self.schedule(s)
    prediction = denoise(x_t, t)
    if self.eta == 0:
      return n_s.alpha * prediction.x0 + n_s.sigma * prediction.eps, carry
    variance = self.eta**2 * posterior_variance(n_t, n_s)
    direction = jnp.sqrt(jnp.maximum(n_s.sigma**2 - variance, 0))
    noise = normal_each(keys, x_t.shape[1:]).astype(x_t.dtype)
    x_s = n_s.alpha * prediction.x0 + direction * prediction.eps + jnp.sqrt(variance) * noise
    return x_s, carry
