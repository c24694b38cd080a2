"""Likelihoods by the probability flow on data whose density is known.

Gaussian data with covariance K noised to s = sigma / alpha have covariance K + s^2 in x_t / alpha, and the flow
multiplies the deviation from the mean along an eigenvector of K by sqrt((k + s_T^2) / (k + s_0^2)).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.diffusion import likelihood
from diffusion_jax.types import Prediction
from tests.diffusion.test_schedules import build

MEAN = np.array([0.3, -0.2, 0.1])
COVARIANCE = np.array([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.2]])


def denoiser(schedule, covariance):
  def denoise(x_t, t):
    alpha, sigma = schedule(t)
    noised = alpha**2 * covariance + sigma**2 * np.eye(len(covariance))
    difference = x_t[:, 0, 0] - alpha * MEAN
    eps = sigma * jnp.linalg.solve(noised, difference.T).T
    eps = eps[:, None, None]
    return Prediction((x_t - sigma * eps) / alpha, eps)

  return denoise


def log_p(schedule, covariance, x0, probe, num_steps):
  times = likelihood.flow_times(schedule, num_steps)
  path = likelihood.start_path(schedule, jnp.asarray(times[0]), x0)
  denoise = denoiser(schedule, covariance)

  def body(path, step):
    return likelihood.advance_path(denoise, schedule, probe, path, *step), None

  steps = (jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
  return likelihood.end_path(jax.lax.scan(body, path, steps)[0])


def exact(schedule, covariance, x0, num_steps):
  """log density of a standard normal at the flow's end, pulled back to x0 along the exact flow."""
  times = likelihood.flow_times(schedule, num_steps)
  levels = [schedule(jnp.asarray(t)) for t in times[[0, -1]]]
  s_0, s_T = (float(n.sigma / n.alpha) for n in levels)
  eigenvalues, vectors = np.linalg.eigh(covariance)
  grown = np.sqrt((eigenvalues + s_T**2) / (eigenvalues + s_0**2))
  y = MEAN + (x0[:, 0, 0] - MEAN) @ vectors * grown @ vectors.T
  scale = np.sqrt(1 + s_T**2)
  log_det = np.sum(np.log(grown)) - len(MEAN) * np.log(scale)
  return stats.norm.logpdf(y / scale).sum(axis=1) + log_det


@pytest.mark.parametrize('name', ['linear', 'cosine', 'rectified_flow', 'variance_exploding'])
def test_gaussian_data(name):
  """A diagonal Jacobian, where one probe is exact; Heun's method is of second order."""
  covariance = np.diag([0.5, 0.1, 0.02])
  with jax.enable_x64():
    schedule = build(name)
    x0 = jnp.asarray(np.random.default_rng(0).normal(MEAN, 0.5, (4, 1, 1, 3)))
    probe = jnp.asarray(np.random.default_rng(1).choice([-1.0, 1.0], x0.shape))
    errors = []
    for num_steps in (100, 200):
      found = log_p(schedule, covariance, x0, probe, num_steps)
      errors.append(np.abs(found - exact(schedule, covariance, np.asarray(x0), num_steps)).max())
  assert errors[1] < 0.01 and errors[1] < errors[0] / 3


def test_probes_are_unbiased():
  schedule, count = build('linear'), 4000
  x0 = np.full((count, 1, 1, 3), 0.4, np.float32)
  probe = np.random.default_rng(2).choice([-1.0, 1.0], x0.shape).astype(np.float32)
  found = np.asarray(log_p(schedule, COVARIANCE, jnp.asarray(x0), jnp.asarray(probe), 100))
  expected = exact(schedule, COVARIANCE, x0[:1], 100)
  error = found.std() / np.sqrt(count)
  assert error > 1e-4  # One probe is not exact here.
  assert abs(found.mean() - expected[0]) < 4 * error + 0.01


def test_uniform_pixels_take_eight_bits():
  """Density 1/2 an axis over a range of 2 (256 levels wide, of which 255 lie in [-1, 1])."""
  density = -np.log(256 / 127.5)
  assert likelihood.bits_per_dimension(12 * density, 12) == pytest.approx(8)
