"""Schedules against their definitions, and the contract that all of them keep."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.plugins import make_plugin, plugin_names

NAMES = plugin_names('diffusion.schedules')
DISCRETE = [name for name in NAMES if name not in ('rectified_flow', 'variance_exploding')]


def build(name, **changes):
  return make_plugin('diffusion.schedules', name, **changes)


def times(schedule, num_steps, spacing='trailing', **options):
  return make_plugin('diffusion.spacings', spacing, **options)(schedule, num_steps)


def time_sampling(name='uniform', **options):
  return make_plugin('diffusion.time_sampling', name, **options)


def test_all_are_found():
  assert set(NAMES) == {*DISCRETE, 'rectified_flow', 'variance_exploding'} and len(DISCRETE) == 3


@pytest.mark.parametrize(
  'name, changes',
  [*((n, {}) for n in NAMES), *((n, {'zero_terminal_snr': True}) for n in DISCRETE)],
)
def test_contract(name, changes):
  schedule = build(name, **changes)
  t = jnp.linspace(0, 1, 2001)
  alpha, sigma = jax.jit(schedule)(t)
  assert alpha.shape == sigma.shape == t.shape and alpha.dtype == jnp.float32
  assert alpha[0] == 1 and sigma[0] == 0  # The last sampling step lands on clean data.
  assert np.all(np.diff(alpha) <= 1e-7) and np.all(np.diff(sigma) >= -1e-7)
  assert np.all(np.isfinite(alpha)) and np.all(np.isfinite(sigma))
  drawn = schedule.snap(time_sampling()(jax.random.key(0), (10_000,), schedule))
  assert drawn.shape == (10_000,) and drawn.min() > 0 and drawn.max() <= 1
  assert abs(float(drawn.mean()) - 0.5) < 0.02  # Uniform: deviation of the mean is 0.003.
  inside = jnp.linspace(1e-4, 0.9999, 4001)
  alpha, sigma = schedule(inside)
  log_snr = 2 * jnp.log(alpha / sigma)
  np.testing.assert_allclose(jax.jit(schedule.time_at)(log_snr), inside, rtol=2e-3, atol=2e-6)


def test_linear_is_the_product_of_its_betas():
  alpha, sigma = build('linear')(jnp.arange(1001) / 1000)
  product = 1.0
  for i in range(1, 1001):
    product *= 1 - (1e-4 + (0.02 - 1e-4) * (i - 1) / 999)
    if i in (1, 2, 500, 1000):
      assert float(alpha[i]) == pytest.approx(math.sqrt(product), rel=2e-6)
      assert float(sigma[i]) == pytest.approx(math.sqrt(1 - product), rel=2e-6)


def test_quadratic_is_linear_in_the_root():
  table = build('scaled_linear').alpha_bar
  betas = 1 - table[1:] / table[:-1]
  np.testing.assert_allclose(np.diff(np.sqrt(betas), 2), 0, atol=1e-12)
  np.testing.assert_allclose(betas[[0, -1]], [8.5e-4, 0.012], rtol=1e-10)


def test_cosine_follows_its_curve_where_betas_are_not_capped():
  table = build('cosine').alpha_bar
  i = np.arange(900)
  curve = np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  np.testing.assert_allclose(table[:900], curve / curve[0], rtol=1e-10)
  assert 1 - table[-1] / table[-2] == pytest.approx(0.999)


@pytest.mark.parametrize('name', DISCRETE)
def test_zero_terminal_snr_shifts_and_scales_the_root(name):
  """Lin et al. 2024, Algorithm 1: the first of T values stays, the last is 0, differences keep their ratios."""
  plain, rescaled = (np.sqrt(build(name, zero_terminal_snr=z).alpha_bar[1:]) for z in (False, True))
  assert rescaled[0] == pytest.approx(plain[0], rel=1e-12) and rescaled[-1] == 0
  scale = plain[0] / (plain[0] - plain[-1])
  np.testing.assert_allclose(np.diff(rescaled), scale * np.diff(plain), rtol=1e-6)
  with pytest.raises(ValueError, match='num_timesteps: got 1'):
    build(name, num_timesteps=1, zero_terminal_snr=True)


def test_zero_terminal_snr_ends_in_pure_noise():
  """In the last cell alpha is linear, and the inverse finds it; beyond there is only the end."""
  schedule = build('linear', zero_terminal_snr=True)
  t = jnp.asarray([0.999, 0.99925, 0.9995, 0.99975, 1])
  alpha, sigma = schedule(t)
  np.testing.assert_allclose(alpha, alpha[0] * np.array([1, 0.75, 0.5, 0.25, 0]), atol=2e-7)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
  log_snr = 2 * jnp.log(alpha / sigma)
  assert log_snr[-1] == -jnp.inf
  np.testing.assert_allclose(schedule.time_at(log_snr), t, atol=3e-7)
  assert float(schedule.time_at(jnp.float32(-100))) == 1


@pytest.mark.parametrize('name', DISCRETE)
def test_network_time_is_the_exact_timestep(name):
  schedule = build(name)
  t = jnp.asarray(np.arange(1, 1001) / 1000, jnp.float32)
  np.testing.assert_array_equal(jax.jit(schedule.network_time)(t), np.arange(1000))


def test_training_and_sampling_use_the_same_times():
  schedule = build('linear', num_timesteps=20)
  drawn = schedule.snap(time_sampling()(jax.random.key(1), (5000,), schedule))
  drawn = np.unique(np.asarray(drawn) * 20)
  np.testing.assert_allclose(drawn, np.arange(1, 21), rtol=1e-6)
  np.testing.assert_allclose(times(schedule, 20) * 20, np.arange(20, -1, -1), atol=1e-12)


def test_log_snr_is_linear_between_indices():
  alpha, sigma = build('cosine')(jnp.asarray([0.5, 0.50025, 0.5005, 0.501]))
  log_snr = 2 * np.log(alpha / sigma)
  weights = [(log_snr[i] - log_snr[0]) / (log_snr[3] - log_snr[0]) for i in (1, 2)]
  np.testing.assert_allclose(weights, [0.25, 0.5], atol=2e-3)


@pytest.mark.parametrize('num_timesteps', [0, -1, 10**9])
@pytest.mark.parametrize('name', DISCRETE)
def test_a_table_has_a_size_that_can_be_one(name, num_timesteps):
  with pytest.raises(ValueError, match='num_timesteps'):
    build(name, num_timesteps=num_timesteps)
