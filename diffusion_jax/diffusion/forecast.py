"""Forecasts of a quantity along the steps of sampling (Liu et al. 2025, arXiv:2503.06923, TaylorSeer).

Full steps compute it; between them it is a Taylor polynomial in the step number, whose derivatives are backward
differences of the full steps so far:
  D_0 = F(n),   D_i = (D_{i-1}(n) - D_{i-1}(m)) / (n - m),   F(n + k) ~ sum_i D_i k^i / i!
with m the full step before n. Order 0 reuses the last value (Selvaraju et al. 2024, arXiv:2407.01425, FORA).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.types import Array


class History(NamedTuple):
  """derivatives: D_0 and on, those not known yet 0. number: the last full step. count: full steps so far."""

  derivatives: tuple[Array, ...]
  number: Array
  count: Array


def no_history(shape: tuple[int, ...], order: int) -> History:
  """Before the first full step; float32."""
  return History((jnp.zeros(shape),) * (order + 1), jnp.int32(0), jnp.int32(0))


def observe(history: History, value: Array, number: Array) -> History:
  """Adds the value of full step `number`."""
  distance = jnp.maximum(number - history.number, 1).astype(jnp.float32)
  found = [value.astype(jnp.float32)]
  for order, before in enumerate(history.derivatives[:-1], 1):
    slope = (found[-1] - before) / distance
    found.append(jnp.where(history.count >= order, slope, 0))
  return History(tuple(found), jnp.int32(number), history.count + 1)


def forecast(history: History, number: Array) -> Array:
  """The value at step `number`, after the last full step."""
  k = (number - history.number).astype(jnp.float32)
  terms = [d * (k**i / math.factorial(i)) for i, d in enumerate(history.derivatives)]
  return sum(terms)
