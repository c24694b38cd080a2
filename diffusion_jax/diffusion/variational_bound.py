"""The terms of the variational bound (Ho et al. 2020, arXiv:2006.11239, Eq. 5), in bits a dimension.

  L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)) for the table's steps from index i >= 2 to i - 1,
  L_0 = -log p(x0 | x_1) for the step from index 1 to data.
Both sides are Gaussian: q with the posterior's mean and variance, p with the posterior's mean at the
network's x0 and with the learned variance (Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15). The
means differ by alpha_s sigma_ts^2 / sigma_t^2 times the error of x0, because both see the same x_t.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers.ddpm import (
  log_variance_bounds,
  posterior_mean,
  step_variance,
)
from diffusion_jax.types import Array, NoiseLevel, NoiseSchedule

HALF_LEVEL = 1 / 255  # Half the distance of neighbours among the 256 levels in [-1, 1].


def gaussian_kl(difference: Array, log_variance_q: Array, log_variance_p: Array) -> Array:
  """KL(q || p) in nats of scalar Gaussians whose means differ by `difference`; any shapes."""
  ratio = log_variance_q - log_variance_p
  return (jnp.exp(ratio) - 1 - ratio + difference**2 * jnp.exp(-log_variance_p)) / 2


def discretised_log_likelihood(x: Array, mean: Array, log_scale: Array) -> Array:
  """log of N(mean, scale^2) integrated over the level of x (Ho et al. 2020, Eq. 13); any shapes.

  The levels -1 and 1 reach to infinity, so that the 256 probabilities sum to 1. The published code
  applies the same formula to latents, where it is no likelihood but still fits the scale.
  """
  inverse = jnp.exp(-log_scale)
  lower, upper = (x - mean - HALF_LEVEL) * inverse, (x - mean + HALF_LEVEL) * inverse
  # cdf(upper) - cdf(lower) = cdf(-lower) - cdf(-upper): of the two the one in the lower tail, where
  # the logarithms of both are exact.
  mirror = lower + upper > 0
  below, above = jnp.where(mirror, -upper, lower), jnp.where(mirror, -lower, upper)
  log_above = jax.scipy.special.log_ndtr(above)
  share = -jnp.expm1(jax.scipy.special.log_ndtr(below) - log_above)
  inside = log_above + jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))
  first, last = jax.scipy.special.log_ndtr(upper), jax.scipy.special.log_ndtr(-lower)
  return jnp.where(x < -0.999, first, jnp.where(x > 0.999, last, inside))


def term(
  schedule: NoiseSchedule, x0: Array, x_t: Array, t: Array, mean_x0: Array, fraction: Array
) -> Array:
  """The bound's term of each example's own t, in bits a dimension: (B,) float32.

  x0, x_t, the network's mean_x0 and fraction (B,H,W,C); t (B,) on the table of a discrete schedule.
  """
  index = jnp.round(t * schedule.num_timesteps)
  s = (index - 1) / schedule.num_timesteps

  def column(values):
    return jnp.reshape(values, (-1,) + (1,) * (x0.ndim - 1))  # (B,1,1,1)

  n_t, n_s = (NoiseLevel(*map(column, schedule(time))) for time in (t, s))
  small, large = map(column, log_variance_bounds(schedule, t, s))
  log_variance = small + fraction * (large - small)
  difference = n_s.alpha * step_variance(n_t, n_s) / n_t.sigma**2 * (x0 - mean_x0)
  kl = gaussian_kl(difference, small, log_variance)
  mean = posterior_mean(n_t, n_s, x_t, mean_x0)
  nll = -discretised_log_likelihood(x0, mean, log_variance / 2)
  nats = jnp.where(column(index) == 1, nll, kl)
  return jnp.mean(nats, axis=range(1, x0.ndim)) / np.log(2)
