"""The forward process and what a network's output means.

x_t = alpha x0 + sigma eps. A prediction type is a linear function of (x0, eps) that the network is
trained on; together with x_t it can be solved for both. Samplers and guidance only see the result.
Salimans & Ho 2022, arXiv:2202.00512, Section 4; Lipman et al. 2023, arXiv:2210.02747.

With learned variance the output has 2C channels: the prediction, and the v of Nichol & Dhariwal 2021
(arXiv:2102.09672, Eq. 15). v = -1 is the smaller bound of the variance and v = 1 the larger one.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.types import Array, NoiseLevel, NoiseSchedule, Prediction


class PredictionType(NamedTuple):
  """target: what is trained on. invert: output -> (x0, eps). x0_gain: |d x0 / d output| at fixed x_t."""

  target: Callable[[NoiseLevel, Array, Array], Array]
  invert: Callable[[NoiseLevel, Array, Array], Prediction]
  x0_gain: Callable[[NoiseLevel], Array]


PREDICTION_TYPES = {
  'eps': PredictionType(
    target=lambda n, x0, eps: eps,
    invert=lambda n, x_t, out: Prediction((x_t - n.sigma * out) / n.alpha, out),
    x0_gain=lambda n: n.sigma / n.alpha,
  ),
  'x0': PredictionType(
    target=lambda n, x0, eps: x0,
    invert=lambda n, x_t, out: Prediction(out, (x_t - n.alpha * out) / n.sigma),
    x0_gain=lambda n: jnp.ones_like(n.sigma),
  ),
  'v': PredictionType(
    target=lambda n, x0, eps: n.alpha * eps - n.sigma * x0,
    invert=lambda n, x_t, out: Prediction(
      (n.alpha * x_t - n.sigma * out) / (n.alpha**2 + n.sigma**2),
      (n.sigma * x_t + n.alpha * out) / (n.alpha**2 + n.sigma**2),
    ),
    x0_gain=lambda n: n.sigma / (n.alpha**2 + n.sigma**2),
  ),
  'velocity': PredictionType(
    target=lambda n, x0, eps: eps - x0,
    invert=lambda n, x_t, out: Prediction(
      (x_t - n.sigma * out) / (n.alpha + n.sigma), (x_t + n.alpha * out) / (n.alpha + n.sigma)
    ),
    x0_gain=lambda n: n.sigma / (n.alpha + n.sigma),
  ),
}


@dataclasses.dataclass(frozen=True)
class Process:
  """A noise schedule, a prediction type of PREDICTION_TYPES, and whether the output has v too."""

  schedule: NoiseSchedule
  prediction_type: str
  learned_variance: bool = False

  def level(self, t: Array, like: Array) -> NoiseLevel:
    """The noise level at t, () or (B,), shaped to multiply `like` (B,...)."""
    alpha, sigma = self.schedule(t)
    shape = jnp.shape(t) + (1,) * (like.ndim - jnp.ndim(t)) if jnp.ndim(t) else ()
    return NoiseLevel(jnp.reshape(alpha, shape), jnp.reshape(sigma, shape))

  def corrupt(self, x0: Array, eps: Array, t: Array) -> Array:
    """x_t (B,H,W,C) from x0 and eps of that shape; t () or (B,)."""
    n = self.level(t, x0)
    return n.alpha * x0 + n.sigma * eps

  def target(self, x0: Array, eps: Array, t: Array) -> Array:
    """What the network's output at (x_t, t) is trained on."""
    return PREDICTION_TYPES[self.prediction_type].target(self.level(t, x0), x0, eps)

  def split(self, output: Array) -> tuple[Array, Array | None]:
    """The network's output -> what the target is compared with (B,H,W,C), and (v + 1) / 2 or None."""
    if not self.learned_variance:
      return output, None
    prediction, v = jnp.split(output, 2, axis=-1)
    return prediction, (v + 1) / 2

  def to_prediction(self, output: Array, x_t: Array, t: Array) -> Prediction:
    """What the network's output means. eps is undefined at alpha = 0, x0 at sigma = 0."""
    output, fraction = self.split(output)
    found = PREDICTION_TYPES[self.prediction_type].invert(self.level(t, x_t), x_t, output)
    return found._replace(variance=fraction)

  def min_snr_weight(self, t: Array, gamma: float) -> Array:
    """min(SNR, gamma) in units of an x0 loss (Hang et al. 2023, arXiv:2303.09556, Section 3.4)."""
    n = self.schedule(t)
    snr = (n.alpha / n.sigma) ** 2
    return jnp.minimum(snr, gamma) * PREDICTION_TYPES[self.prediction_type].x0_gain(n) ** 2
