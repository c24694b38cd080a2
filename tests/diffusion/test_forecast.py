"""Forecasts of polynomials in the step number."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.forecast import forecast, no_history, observe


def history_of(values, numbers, order):
  history = no_history((2,), order)
  for number in numbers:
    history = observe(history, jnp.asarray(values(number)), jnp.int32(number))
  return history


def powers(degree):
  return lambda n: np.array([1.5, -0.5]) * float(n) ** degree + np.array([0.0, 2.0])


def test_order_0_reuses_the_last_value():
  history = history_of(powers(2), (0, 3, 6), 0)
  np.testing.assert_allclose(forecast(history, jnp.int32(8)), powers(2)(6))


def test_order_1_continues_a_line_whatever_the_distances():
  history = history_of(powers(1), (0, 1, 4, 6), 1)
  for number in (7, 9):
    np.testing.assert_allclose(forecast(history, jnp.int32(number)), powers(1)(number), rtol=1e-6)


@pytest.mark.parametrize('order', [2, 3])
def test_higher_orders_are_the_paper_s_expansion(order):
  """Its differences are not Newton's: D_1 is the slope of the last interval, as if it were that at its end."""
  history, k = history_of(powers(2), (0, 3, 6, 9, 12), order), 2
  f = powers(2)
  first = (f(12) - f(9)) / 3
  second = (f(12) - 2 * f(9) + f(6)) / 9
  np.testing.assert_allclose(
    forecast(history, jnp.int32(12 + k)), f(12) + k * first + k**2 / 2 * second, rtol=1e-5
  )


def test_what_is_not_known_yet_counts_as_0():
  history = history_of(powers(2), (0,), 3)
  np.testing.assert_array_equal(np.stack(history.derivatives[1:]), 0)
  history = observe(history, jnp.asarray(powers(2)(1)), jnp.int32(1))
  np.testing.assert_array_equal(np.stack(history.derivatives[2:]), 0)
  np.testing.assert_allclose(forecast(history, jnp.int32(2)), 2 * powers(2)(1) - powers(2)(0))
