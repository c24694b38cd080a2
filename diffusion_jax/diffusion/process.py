"""The forward process, how a network is fed with x_t, and what its output means.

x_t = alpha x0 + sigma eps. A prediction type is a linear function of (x0, eps) that the network is
trained on; together with x_t it can be solved for both. Samplers and guidance only see the result.
Salimans & Ho 2022, arXiv:2202.00512, Section 4; Lipman et al. 2023, arXiv:2210.02747.

'edm' is the preconditioning of Karras et al. 2022, arXiv:2206.00364, Table 1. With y = x_t / alpha,
s = sigma / alpha and the deviation d of the data, the network F sees c_in y and c_noise, and
  x0 = c_skip y + c_out F(c_in y, c_noise)
  c_skip = d^2 / (s^2 + d^2)    c_out = s d / sqrt(s^2 + d^2)    c_in = 1 / sqrt(s^2 + d^2)
  c_noise = ln(s) / 4
Its loss weight (s^2 + d^2) / (s d)^2 on x0 is weight 1 on F. Solved for the target of F and for eps,
without differences of nearly equal numbers:
  F = (s x0 - d^2 eps) / (d sqrt(s^2 + d^2))    eps = s y / (s^2 + d^2) - d F / sqrt(s^2 + d^2)

With learned variance the output has 2C channels: the prediction, and the v of Nichol & Dhariwal 2021
(arXiv:2102.09672, Eq. 15). v = -1 is the smaller bound of the variance and v = 1 the larger one.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.types import Array, Condition, Network, NoiseLevel, NoiseSchedule, Prediction


class PredictionType(NamedTuple):
  """How the network is fed, what it is trained on, and what its output means.

  target: (level, x0, eps) -> what is trained on. invert: (level, x_t, output) -> x0 and eps.
  x0_gain: |d x0 / d output| at fixed x_t. scale_input: (level, x_t) -> the network's input.
  network_time: (schedule, t) -> the network's time.
  """

  target: Callable[[NoiseLevel, Array, Array], Array]
  invert: Callable[[NoiseLevel, Array, Array], Prediction]
  x0_gain: Callable[[NoiseLevel], Array]
  scale_input: Callable[[NoiseLevel, Array], Array] = lambda n, x_t: x_t
  network_time: Callable[[NoiseSchedule, Array], Array] = lambda schedule, t: schedule.network_time(
    t
  )


EPS = PredictionType(
  target=lambda n, x0, eps: eps,
  invert=lambda n, x_t, out: Prediction((x_t - n.sigma * out) / n.alpha, out),
  x0_gain=lambda n: n.sigma / n.alpha,
)
X0 = PredictionType(
  target=lambda n, x0, eps: x0,
  invert=lambda n, x_t, out: Prediction(out, (x_t - n.alpha * out) / n.sigma),
  x0_gain=lambda n: jnp.ones_like(n.sigma),
)
V = PredictionType(
  target=lambda n, x0, eps: n.alpha * eps - n.sigma * x0,
  invert=lambda n, x_t, out: Prediction(
    (n.alpha * x_t - n.sigma * out) / (n.alpha**2 + n.sigma**2),
    (n.sigma * x_t + n.alpha * out) / (n.alpha**2 + n.sigma**2),
  ),
  x0_gain=lambda n: n.sigma / (n.alpha**2 + n.sigma**2),
)
VELOCITY = PredictionType(
  target=lambda n, x0, eps: eps - x0,
  invert=lambda n, x_t, out: Prediction(
    (x_t - n.sigma * out) / (n.alpha + n.sigma), (x_t + n.alpha * out) / (n.alpha + n.sigma)
  ),
  x0_gain=lambda n: n.sigma / (n.alpha + n.sigma),
)


def edm(sigma_data: float) -> PredictionType:
  """The preconditioning of Karras et al. 2022, Table 1; sigma_data: the deviation of the data."""
  d = sigma_data

  def relative(n: NoiseLevel) -> tuple[Array, Array]:
    s = n.sigma / n.alpha
    return s, jnp.sqrt(s**2 + d**2)

  def scale_input(n, x_t):
    return x_t / n.alpha / relative(n)[1]

  def network_time(schedule, t):
    return jnp.log(relative(schedule(t))[0]) / 4

  def target(n, x0, eps):
    s, norm = relative(n)
    return (s * x0 - d**2 * eps) / (d * norm)

  def invert(n, x_t, out):
    (s, norm), y = relative(n), x_t / n.alpha
    return Prediction((d / norm) ** 2 * y + s * d / norm * out, s * y / norm**2 - d * out / norm)

  def x0_gain(n):
    s, norm = relative(n)
    return s * d / norm

  return PredictionType(target, invert, x0_gain, scale_input, network_time)


PREDICTION_TYPES = ('eps', 'x0', 'v', 'velocity', 'edm')


def prediction_type(name: str, sigma_data: float) -> PredictionType:
  """The one of this name; sigma_data is that of 'edm'."""
  return {'eps': EPS, 'x0': X0, 'v': V, 'velocity': VELOCITY, 'edm': edm(sigma_data)}[name]


@dataclasses.dataclass(frozen=True)
class Process:
  """A noise schedule, one of PREDICTION_TYPES, and whether the output has v too."""

  schedule: NoiseSchedule
  prediction_type: str
  learned_variance: bool = False
  sigma_data: float = 0.5

  @property
  def _type(self) -> PredictionType:
    return prediction_type(self.prediction_type, self.sigma_data)

  def level(self, t: Array, like: Array) -> NoiseLevel:
    """The noise level at t, () or (B,), shaped to multiply `like` (B,...)."""
    alpha, sigma = self.schedule(t)
    shape = jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t)) if jnp.ndim(t) else ()
    return NoiseLevel(jnp.reshape(alpha, shape), jnp.reshape(sigma, shape))

  def corrupt(self, x0: Array, eps: Array, t: Array) -> Array:
    """x_t (B,H,W,C) from x0 and eps of that shape; t () or (B,)."""
    n = self.level(t, x0)
    return n.alpha * x0 + n.sigma * eps

  def start(self, noise: Array, t: Array) -> Array:
    """Scales unit noise to the start of sampling at t, where the process exceeds unit variance."""
    return jnp.maximum(self.level(t, noise).sigma, 1) * noise

  def apply(self, network: Network, x_t: Array, t: Array, condition: Condition) -> Array:
    """The network's output (B,H,W,C or 2C) for x_t at t, () or (B,): the only place that feeds it."""
    time = jnp.broadcast_to(self._type.network_time(self.schedule, t), x_t.shape[:1])
    return network(self._type.scale_input(self.level(t, x_t), x_t), time, condition)

  def target(self, x0: Array, eps: Array, t: Array) -> Array:
    """Returns the training target of the network's output at (x_t, t)."""
    return self._type.target(self.level(t, x0), x0, eps)

  def split(self, output: Array) -> tuple[Array, Array | None]:
    """The network's output -> what the target is compared with (B,H,W,C), and (v + 1) / 2 or None."""
    if not self.learned_variance:
      return output, None
    prediction, v = jnp.split(output, 2, axis=-1)
    return prediction, (v + 1) / 2

  def to_prediction(self, output: Array, x_t: Array, t: Array) -> Prediction:
    """Converts the network's output. eps is undefined at alpha = 0, x0 at sigma = 0."""
    output, fraction = self.split(output)
    found = self._type.invert(self.level(t, x_t), x_t, output)
    return found._replace(variance=fraction)

  def min_snr_weight(self, t: Array, gamma: float) -> Array:
    """min(SNR, gamma) in units of an x0 loss (Hang et al. 2023, arXiv:2303.09556, Section 3.4)."""
    n = self.schedule(t)
    snr = (n.alpha / n.sigma) ** 2
    return jnp.minimum(snr, gamma) * self._type.x0_gain(n) ** 2
