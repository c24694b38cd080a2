"""The probability flow in the half log SNR, which fast solvers share (Lu et al. 2022, arXiv:2211.01095).

With l = log(alpha / sigma), the flow from time t to s has the exact solution (Proposition 4.1)
  x_s = sigma_s / sigma_t x_t + sigma_s integral of e^l x0(l) dl from l_t to l_s
so only x0 as a function of l has to be approximated. A constant x0 is integrated exactly; that is DDIM.
"""

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp

from diffusion_jax.types import Array, NoiseLevel

TERMS = 18  # The series ends where 1 / 19! is below float64's resolution.


def half_log_snr(level: NoiseLevel) -> Array:
  """log(alpha / sigma): -inf at alpha = 0, inf at sigma = 0."""
  return jnp.log(level.alpha) - jnp.log(level.sigma)


def constant_step(n_t: NoiseLevel, n_s: NoiseLevel, x_t: Array, x0: Array) -> Array:
  """x_s for an x0 that does not change between t and s; finite at alpha_t = 0 and at sigma_s = 0."""
  keep = n_s.sigma / n_t.sigma
  return keep * x_t + (n_s.alpha - keep * n_t.alpha) * x0


def moments(h: Array) -> list[Array]:
  """m_1, m_2, m_3 of m_j = h integral of e^(-(1 - r) h) r^j dr over 0..1; h is a scalar of any sign, or inf.

  By parts, m_j = 1 - j m_(j - 1) / h, which loses all digits at small h; there it is the series
  m_j = h sum of j! / (n + j + 1)! (-h)^n.
  """
  is_small = jnp.abs(h) < 1
  small, large = jnp.where(is_small, h, 0), jnp.where(is_small, 1, h)
  by_parts, found = -jnp.expm1(-large), []
  for j in (1, 2, 3):
    terms = [math.factorial(j) / math.factorial(n + j + 1) for n in range(TERMS)]
    series = small * jnp.polyval(jnp.asarray(terms[::-1], h.dtype), -small, unroll=TERMS)
    by_parts = 1 - j * by_parts / large
    found.append(jnp.where(is_small, series, by_parts))
  return found


def node_weights(nodes: Sequence[Array], m: Sequence[Array]) -> list[Array]:
  """c_k / r_k of 1 to 3 different nodes r_k: the integrals of r times Lagrange's polynomials, over r_k."""
  weights = []
  for k, r in enumerate(nodes):
    others = [*nodes[:k], *nodes[k + 1 :]]
    if not others:
      integral = m[0]
    elif len(others) == 1:
      integral = m[1] - others[0] * m[0]
    else:
      integral = m[2] - (others[0] + others[1]) * m[1] + others[0] * others[1] * m[0]
    for other in others:
      integral = integral / (r - other)
    weights.append(integral / r)
  return weights


def multistep_order(levels: Sequence[NoiseLevel], n_s: NoiseLevel) -> Array:
  """The highest order of a step to n_s: one more than the known times before t; levels: t first, then those.

  Times that are too close for their levels to differ count as one. The step to clean data has order 1.
  """
  ls = [half_log_snr(n) for n in levels]
  known = [jnp.isfinite(before) & (before < after) for after, before in itertools.pairwise(ls)]
  order = 1 + jnp.sum(jnp.cumprod(jnp.stack(known), dtype=jnp.int32))
  moves = (n_s.sigma > 0) & (half_log_snr(n_s) > ls[0])
  return jnp.where(moves, order, 1).astype(jnp.int32)
