"""UniPC (Zhao et al. 2023, arXiv:2302.04867, Algorithms 1 and 2), which here predicts x0 and steps in log SNR.

With l = log(alpha / sigma), h = l_s - l_t and r = (l - l_t) / h, the flow from t to s is exactly
  x_s = sigma_s / sigma_t x_t + alpha_s h integral of e^(-(1 - r) h) x0(r) dr over 0..1.
Where x0 is known at nodes r_k besides r = 0, the integral of x0 - x0_t is sum of c_k (x0_k - x0_t) / r_k, and
it is exact for polynomials of as many degrees as there are nodes if
  sum of c_k r_k^(j - 1) = m_j,    m_j = h integral of e^(-(1 - r) h) r^j dr,    j = 1, 2, ...
A system of one equation is replaced by c = B(h) / 2, which has the same order. With B(h) = 1 - e^(-h), called
bh2, the predictor of order 2 is DPM-Solver++ 2M; bh1 is B(h) = h.

The predictor of order p has p - 1 nodes, at the times before t. Once x0 is evaluated at s, the corrector adds
the node r = 1 and takes the same step again, one order better: no evaluation is added, and the next one is
made at what the predictor found. Steps with fewer times before them have a lower order. The step to clean
data, where h is infinite, has order 1, and so has the one from alpha = 0.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import one_of, option, require_options
from diffusion_jax.diffusion.samplers.exponential import (
  constant_step,
  half_log_snr,
  moments,
  multistep_order,
  node_weights,
)
from diffusion_jax.types import Array, Denoiser, NoiseLevel, NoiseSchedule


class History(NamedTuple):
  """The last step and what was evaluated: `order` entries, the latest first.

  x: where the last step started (B,H,W,C). x0: (B,H,W,C) each. levels: scalars; alpha = 0 stands for none.
  order: that of the last step, 0 before the first. left: steps that are left.
  """

  x: Array
  x0: tuple[Array, ...]
  levels: tuple[NoiseLevel, ...]
  order: Array
  left: Array


@dataclasses.dataclass(frozen=True)
class UniPC:
  """Predictor and corrector in one evaluation a step; finite where alpha = 0 or sigma = 0."""

  schedule: NoiseSchedule
  order: int = option(2, 'Order of the predictor; the corrector adds one.', one_of(2, 3))
  b_h: str = option(
    'bh2', "B(h) of the paper: 'bh2' is 1 - exp(-h), 'bh1' is h.", one_of('bh1', 'bh2')
  )
  lower_order_final: bool = option(
    True, 'Whether the last step has order 1 and the one before at most 2.'
  )

  def __post_init__(self):
    require_options(self)

  def init(self, x_T: Array, times: np.ndarray) -> History:
    """Nothing is known before the first step."""
    dtype = jnp.promote_types(x_T.dtype, jnp.float32)
    none = NoiseLevel(jnp.zeros((), dtype), jnp.ones((), dtype))
    zeros = jnp.zeros_like(x_T)
    return History(
      zeros,
      (zeros,) * self.order,
      (none,) * self.order,
      jnp.asarray(0, jnp.int32),
      jnp.asarray(len(times) - 1, jnp.int32),
    )

  def evaluations(self, num_steps: int) -> int:
    """One a step."""
    return num_steps

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: History
  ) -> tuple[Array, History]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,) are not used."""
    del keys
    n_t, n_s = self.schedule(t), self.schedule(s)
    x0 = denoise(x_t, t).x0
    corrected = self._polynomial_step(carry.order, carry.levels, n_t, carry.x, carry.x0, x0)
    x_t = jnp.where(carry.order > 0, corrected, x_t)
    levels, x0s = (n_t, *carry.levels), (x0, *carry.x0)
    order = multistep_order(levels[: self.order], n_s)
    if self.lower_order_final:
      order = jnp.minimum(order, carry.left)
    x_s = self._polynomial_step(order, levels, n_s, x_t, x0s)
    return x_s, History(x_t, x0s[: self.order], levels[: self.order], order, carry.left - 1)

  def _polynomial_step(
    self,
    order: Array,
    levels: Sequence[NoiseLevel],
    n_s: NoiseLevel,
    x_t: Array,
    x0s: Sequence[Array],
    x0_at_s: Array | None = None,
  ) -> Array:
    """x_s by the predictor of this order, or by its corrector if x0 at s is given.

    levels and x0s: at t, and at the times before it.
    """
    n_t, x0 = levels[0], x0s[0]
    h = half_log_snr(n_s) - half_log_snr(n_t)
    nodes = [(half_log_snr(n) - half_log_snr(n_t)) / h for n in levels[1 : self.order]]
    values, m = list(x0s[1 : self.order]), moments(h)
    half = -jnp.expm1(-h) / 2 if self.b_h == 'bh2' else jnp.where(jnp.isfinite(h), h, 0) / 2
    rows = []  # The weights of the nodes, and that of s, for every order.
    for p in range(1, self.order + 1):
      before, last = nodes[: p - 1], [] if x0_at_s is None else [jnp.ones_like(h)]
      used = [*before, *last]
      weights = [half / r for r in used] if len(used) == 1 else node_weights(used, m)
      padding = [jnp.zeros_like(h)] * (len(nodes) - len(before))
      rows.append(jnp.stack([*weights[: p - 1], *padding, *weights[p - 1 :]]))
    if x0_at_s is not None:
      values.append(x0_at_s)
    weights = jnp.stack(rows)[jnp.maximum(order, 1) - 1]
    change = sum(w * (value - x0) for w, value in zip(weights, values, strict=True))
    return constant_step(n_t, n_s, x_t, x0) + n_s.alpha * change
