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


def test_edm_is_the_published_preconditioning():
  """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), weight 1/c_out^2 on D (Karras et al. 2022, Table 1)."""
  with jax.enable_x64():
    x0, eps, output = (np.random.default_rng(i).normal(size=(6, 2, 2, 1)) for i in range(3))
    t, d = jnp.asarray([1e-4, 0.003, 0.02, 0.1, 0.5, 1.0]), 0.4
    process = Process(build('variance_exploding'), 'edm', sigma_data=d)
    sigma = 80 * np.asarray(t)[:, None, None, None]
    c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / np.sqrt(d**2 + sigma**2)
    c_in, c_noise = 1 / np.sqrt(sigma**2 + d**2), np.log(sigma[:, 0, 0, 0]) / 4
    weight = (sigma**2 + d**2) / (sigma * d) ** 2
    x_t, seen = process.corrupt(x0, eps, t), {}

    def network(x, time, condition):
      seen.update(x=x, time=time)
      return jnp.asarray(output)

    found = process.to_prediction(process.apply(network, x_t, t, {}), x_t, t)
    denoised = c_skip * x_t + c_out * output
    np.testing.assert_allclose(seen['x'], c_in * x_t, rtol=1e-12)
    np.testing.assert_allclose(seen['time'], c_noise, rtol=1e-12)
    np.testing.assert_allclose(found.x0, denoised, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(x_t, found.x0 + sigma * found.eps, rtol=1e-10, atol=1e-12)
    squared = np.square(output - process.target(x0, eps, t))
    np.testing.assert_allclose(squared, weight * np.square(denoised - x0), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('name, expected', [('cosine', 1.0), ('variance_exploding', 80.0)])
def test_sampling_starts_where_the_process_ends(name, expected):
  noise = jnp.asarray(EPS)
  found = Process(build(name), 'v').start(noise, jnp.float32(1))
  np.testing.assert_array_equal(found, np.float32(expected) * EPS)


def test_pixels_round_trip():
  levels = jnp.arange(256, dtype=jnp.uint8)
  np.testing.assert_array_equal(to_uint8(from_uint8(levels)), levels)
  np.testing.assert_array_equal(to_uint8(jnp.asarray([-9.0, 9.0])), [0, 255])
  for offset in (-0.49, 0.49):  # Each level is what lies within half a level of it.
    np.testing.assert_array_equal(to_uint8(from_uint8(levels) + offset / 127.5), levels)
