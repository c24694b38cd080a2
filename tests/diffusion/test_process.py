"""Prediction types invert their own targets; weights agree with their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.pixels import from_uint8, to_uint8
from diffusion_jax.diffusion.process import PREDICTION_TYPES, Process
from tests.diffusion.test_schedules import NAMES, build

X0, EPS = (np.random.default_rng(i).normal(size=(6, 4, 4, 3)).astype(np.float32) for i in range(2))
T = jnp.asarray([0.1, 0.25, 0.5, 0.6, 0.75, 0.9])


@pytest.mark.parametrize('prediction', PREDICTION_TYPES)
@pytest.mark.parametrize('name', NAMES)
def test_target_gives_back_x0_and_eps(name, prediction):
  process = Process(build(name), prediction)
  x_t = process.corrupt(X0, EPS, T)
  found = jax.jit(process.to_prediction)(process.target(X0, EPS, T), x_t, T)
  np.testing.assert_allclose(found.x0, X0, atol=2e-3)  # eps at t = 0.9 of cosine: alpha = 0.16.
  np.testing.assert_allclose(found.eps, EPS, atol=2e-3)


@pytest.mark.parametrize('prediction', PREDICTION_TYPES)
def test_min_snr_weight_makes_every_type_the_same_x0_loss(prediction):
  """Weight times squared output error = min(SNR, 5) times the squared x0 error it causes."""
  process = Process(build('cosine'), prediction)
  x_t, target = process.corrupt(X0, EPS, T), process.target(X0, EPS, T)
  wrong = target + 0.1
  x0_error = process.to_prediction(wrong, x_t, T).x0 - process.to_prediction(target, x_t, T).x0
  snr = (process.schedule(T).alpha / process.schedule(T).sigma) ** 2
  expected = np.minimum(snr, 5) * np.mean(np.square(x0_error), axis=(1, 2, 3))
  np.testing.assert_allclose(process.min_snr_weight(T, 5.0) * 0.1**2, expected, rtol=2e-3)


def test_pixels_round_trip():
  levels = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
  np.testing.assert_array_equal(to_uint8(jnp.asarray([-9.0, 9.0])), [0, 255])
  for offset in (-0.49, 0.49):  # Each level is what lies within half a level of it.
    np.testing.assert_array_equal(to_uint8(from_uint8(levels) + offset / 127.5), levels)
