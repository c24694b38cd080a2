"""DDPM ancestral sampling (Ho et al. 2020, arXiv:2006.11239, Eq. 6-7), between any two times s < t.

With alpha_ts = alpha_t / alpha_s and sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2, the forward
process has q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2), and its posterior q(x_s | x_t, x0) has
  mean      alpha_ts sigma_s^2 / sigma_t^2 x_t + alpha_s sigma_ts^2 / sigma_t^2 x0
  variance  sigma_s^2 sigma_ts^2 / sigma_t^2
(Kingma et al. 2021, arXiv:2107.00630, Appendix A). For neighbours t, s of a discrete schedule
sigma_ts^2 is beta_t, and these are DDPM's equations.

A learned variance (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15) lies between the posterior
variance and sigma_ts^2 of the step that is taken, whatever the steps of the training were.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import one_of, option, require_options
from diffusion_jax.randomness import normal_each
from diffusion_jax.types import Array, Denoiser, NoiseLevel, NoiseSchedule, PyTree


def step_variance(n_t: NoiseLevel, n_s: NoiseLevel) -> Array:
  """sigma_ts^2, the noise that the forward process adds from s to t; beta_t between neighbours."""
  return n_t.sigma**2 - (n_t.alpha / n_s.alpha * n_s.sigma) ** 2


def posterior_variance(n_t: NoiseLevel, n_s: NoiseLevel) -> Array:
  """Variance of q(x_s | x_t, x0): 'fixed small', and DDIM's at eta = 1."""
  return n_s.sigma**2 / n_t.sigma**2 * step_variance(n_t, n_s)


def posterior_mean(n_t: NoiseLevel, n_s: NoiseLevel, x_t: Array, x0: Array) -> Array:
  """Mean of q(x_s | x_t, x0)."""
  on_x_t = n_t.alpha / n_s.alpha * n_s.sigma**2 / n_t.sigma**2
  return on_x_t * x_t + n_s.alpha * step_variance(n_t, n_s) / n_t.sigma**2 * x0


def log_variance_bounds(schedule: NoiseSchedule, t: Array, s: Array) -> tuple[Array, Array]:
  """log of the posterior variance and of sigma_ts^2 for the steps t -> s, () or (B,).

  A step to clean data has no posterior variance; the published code gives it that of the table's
  step from index 2 to 1, and so it is here. The schedule must be discrete.
  """
  n_t, n_s = schedule(t), schedule(s)
  second, first = (schedule(jnp.asarray(i / schedule.num_timesteps)) for i in (2, 1))
  small = posterior_variance(second, first)
  small = jnp.where(n_s.sigma > 0, posterior_variance(n_t, n_s), small)
  return jnp.log(small), jnp.log(step_variance(n_t, n_s))


@dataclasses.dataclass(frozen=True)
class DDPM:
  """variance: 'fixed_small' (the posterior's), 'fixed_large' (sigma_ts^2) or 'learned' (between).

  There is no noise in the last step. 'learned' needs a Process with learned_variance.
  """

  schedule: NoiseSchedule
  variance: str = option(
    'fixed_small',
    "Variance of a step; 'learned' needs process.learned_variance.",
    one_of('fixed_small', 'fixed_large', 'learned'),
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
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,)."""
    n_t, n_s = self.schedule(t), self.schedule(s)
    prediction = denoise(x_t, t)
    if self.variance == 'learned':
      small, large = log_variance_bounds(self.schedule, t, s)
      variance = jnp.exp(small + prediction.variance * (large - small))  # (B,H,W,C)
    elif self.variance == 'fixed_small':
      variance = posterior_variance(n_t, n_s)
    else:
      variance = step_variance(n_t, n_s)
    variance = jnp.where(n_s.sigma > 0, variance, 0)
    noise = normal_each(keys, x_t.shape[1:]).astype(x_t.dtype)
    x_s = posterior_mean(n_t, n_s, x_t, prediction.x0) + jnp.sqrt(variance) * noise
    return x_s, carry
