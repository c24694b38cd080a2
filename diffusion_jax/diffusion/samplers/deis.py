"""DEIS in log rho (Zhang & Chen 2023, arXiv:2204.13902, Section 3.3 and Appendix B), where rho = sigma / alpha.

With l = log(alpha / sigma) = -log rho, h = l_s - l_t and r = (l - l_t) / h, the flow from t to s is exactly
  x_s = alpha_s / alpha_t x_t - sigma_s h integral of e^((1 - r) h) eps(r) dr over 0..1.
eps is replaced by the polynomial in r through its values at t and at the times before: order p takes p - 1 of
these, at r_k < 0, and adds sum of c_k (eps_k - eps_t) / r_k to the step of constant eps, which is DDIM's. The
c_k are UniPC's (unipc.py) with -h for h: that solver has such a polynomial for x0.

Steps with fewer times before them have a lower order. The step to clean data, where h is infinite, has order 1,
and so has the one from alpha = 0.
"""

import dataclasses
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


class Past(NamedTuple):
  """order - 1 entries each, the latest first: eps (B,H,W,C) and its level; alpha = 0 stands for none.

  left: steps that are left.
  """

  eps: tuple[Array, ...]
  levels: tuple[NoiseLevel, ...]
  left: Array


@dataclasses.dataclass(frozen=True)
class DEIS:
  """A polynomial of eps in one evaluation a step; finite where alpha = 0 or sigma = 0."""

  schedule: NoiseSchedule
  order: int = option(3, 'Values of eps that a step uses.', one_of(2, 3))
  lower_order_final: bool = option(
    True, 'Whether the last step has order 1 and the one before at most 2.'
  )

  def __post_init__(self):
    require_options(self)

  def init(self, x_T: Array, times: np.ndarray) -> Past:
    """Nothing is known before the first step."""
    dtype, before = jnp.promote_types(x_T.dtype, jnp.float32), self.order - 1
    none = NoiseLevel(jnp.zeros((), dtype), jnp.ones((), dtype))
    return Past(
      (jnp.zeros_like(x_T),) * before, (none,) * before, jnp.asarray(len(times) - 1, jnp.int32)
    )

  def evaluations(self, num_steps: int) -> int:
    """One a step."""
    return num_steps

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: Past
  ) -> tuple[Array, Past]:
    """x_t (B,H,W,C) float32 at scalar t -> x_s at scalar s < t; keys (B,) are not used."""
    del keys
    n_t, n_s = self.schedule(t), self.schedule(s)
    now = denoise(x_t, t)
    eps, levels = (now.eps, *carry.eps), (n_t, *carry.levels)
    order = multistep_order(levels, n_s)
    if self.lower_order_final:
      order = jnp.minimum(order, carry.left)
    weights = self._weights(levels, n_s)[order - 1]
    change = sum(w * (before - now.eps) for w, before in zip(weights, carry.eps, strict=True))
    x_s = constant_step(n_t, n_s, x_t, now.x0) + n_s.sigma * change
    return x_s, Past(eps[: self.order - 1], levels[: self.order - 1], carry.left - 1)

  def _weights(self, levels: tuple[NoiseLevel, ...], n_s: NoiseLevel) -> Array:
    """(order, order - 1): row p - 1 has those of the times before t in a step of order p."""
    l_t = half_log_snr(levels[0])
    h = half_log_snr(n_s) - l_t
    nodes, m = [(half_log_snr(n) - l_t) / h for n in levels[1:]], moments(-h)
    rows = []
    for p in range(1, self.order + 1):
      padding = [jnp.zeros_like(h)] * (self.order - p)
      rows.append(jnp.stack([*node_weights(nodes[: p - 1], m), *padding]))
    return jnp.stack(rows)
