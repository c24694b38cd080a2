"""The model's own likelihood by its probability flow (Song et al. 2021, arXiv:2011.13456, Appendix D.2).

Scaled to unit variance, x = x_t / sqrt(alpha^2 + sigma^2), the flow of every schedule is, over
l = log(sigma / alpha),
  dx/dl = s eps - s^2 x,   s = sigma / sqrt(alpha^2 + sigma^2),
which stands still at both ends. Along it d(log p)/dl = -div(dx/dl). The divergence is the mean of v . J v over
random signs v, J the Jacobian (Hutchinson 1989); one v is exact where J is diagonal. Heun's method integrates
both from the first time, at which the data are taken as they are, up to pure noise, where p is a standard
normal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Denoiser, NoiseSchedule

LEAST_NOISE = (
  0.002  # sigma / alpha of the first time, a quarter of the distance of two levels of a pixel.
)
MOST_NOISE = 1000.0  # Beyond, data have no influence in float32.
LEVEL = 1 / 127.5  # The distance of neighbours among the 256 levels in [-1, 1].


class Path(NamedTuple):
  """x (B,H,W,C) on the way to noise, and what log p has lost so far (B,)."""

  x: Array
  log_det: Array


def flow_times(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
  """(num_steps + 1,) float64 times from data to noise, even in log(sigma / alpha).

  From the first to the last entry of a table; LEAST_NOISE and MOST_NOISE bound them.
  """
  first = 1 / schedule.num_timesteps if schedule.num_timesteps else 0.0
  (a_0, s_0), (a_1, s_1) = (schedule(jnp.float32(t)) for t in (first, 1.0))
  low = max(float(s_0 / a_0), LEAST_NOISE)
  high = MOST_NOISE if a_1 == 0 else min(float(s_1 / a_1), MOST_NOISE)
  logs = np.linspace(np.log(low), np.log(high), num_steps + 1)
  return np.asarray(schedule.time_at(jnp.float32(-2 * logs)), np.float64)


def start_path(schedule: NoiseSchedule, t: Array, x0: Array) -> Path:
  """Data x0 (B,H,W,C) taken as x_t / alpha at the first time t."""
  n = schedule(t)
  scale = n.alpha / _norm(n)
  return Path(scale * x0, jnp.full(x0.shape[:1], x0[0].size * jnp.log(scale)))


def advance_path(
  denoise: Denoiser, schedule: NoiseSchedule, probe: Array, path: Path, t: Array, s: Array
) -> Path:
  """Heun's step from time t up to s > t; probe (B,H,W,C): signs."""
  step = _log_noise(schedule(s)) - _log_noise(schedule(t))
  first, div_first = _rate(denoise, schedule, probe, path.x, t)
  second, div_second = _rate(denoise, schedule, probe, path.x + step * first, s)
  x = path.x + step * (first + second) / 2
  return Path(x, path.log_det + step * (div_first + div_second) / 2)


def end_path(path: Path) -> Array:
  """log p(x0) in nats: (B,)."""
  axes = tuple(range(1, path.x.ndim))
  return path.log_det - jnp.sum(path.x**2 + np.log(2 * np.pi), axis=axes) / 2


def bits_per_dimension(log_p: Array, size: int) -> Array:
  """log density of `size` pixels in [-1, 1], dequantised uniformly -> bits a dimension of the 256 levels."""
  return -log_p / (size * np.log(2)) - np.log2(LEVEL)


def _rate(
  denoise: Denoiser, schedule: NoiseSchedule, probe: Array, x: Array, t: Array
) -> tuple[Array, Array]:
  """dx/dl (B,H,W,C) and its divergence (B,)."""
  n = schedule(t)
  norm = _norm(n)
  s = n.sigma / norm
  rate, pull = jax.vjp(lambda x: s * denoise(norm * x, t).eps - s**2 * x, x)
  return rate, jnp.sum(probe * pull(probe)[0], axis=tuple(range(1, x.ndim)))


def _norm(n) -> Array:
  return jnp.sqrt(n.alpha**2 + n.sigma**2)


def _log_noise(n) -> Array:
  return jnp.log(n.sigma) - jnp.log(n.alpha)
