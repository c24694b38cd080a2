"""Distributions of training times against their closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.plugins import plugin_names
from tests.diffusion.test_schedules import NAMES as SCHEDULES
from tests.diffusion.test_schedules import build, time_sampling

NAMES = plugin_names('diffusion.time_sampling')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('schedule', SCHEDULES)
def test_contract(schedule, name):
  schedule, traces = build(schedule), []

  def draw(key):
    traces.append(1)
    return time_sampling(name)(key, (5000,), schedule)

  jitted = jax.jit(draw)
  first, second = jitted(jax.random.key(0)), jitted(jax.random.key(1))
  assert first.shape == (5000,) and first.dtype == jnp.float32 and len(traces) == 1
  assert np.any(first != second)
  assert first.min() > 0 and first.max() <= 1
  snapped = schedule.snap(first)
  assert snapped.min() > 0 and snapped.max() <= 1
  if schedule.num_timesteps:
    index = np.asarray(snapped, np.float64) * schedule.num_timesteps
    np.testing.assert_allclose(index, np.round(index), atol=1e-3)


@pytest.mark.parametrize('mean, std', [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal_has_its_quantiles(mean, std):
  drawn = time_sampling('logit_normal', mean=mean, std=std)(jax.random.key(0), (20_000,), None)
  for z, share in ((0, 0.5), (1, 0.8413), (-1, 0.1587)):
    expected = 1 / (1 + math.exp(-(mean + z * std)))
    assert float(jnp.quantile(drawn, share)) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('name', ['variance_exploding', 'cosine', 'rectified_flow'])
def test_log_normal_has_its_mean_and_deviation(name):
  """ln(sigma / alpha) is N(-1.2, 1.2^2) (Karras et al. 2022, Table 1), whatever the schedule."""
  schedule = build(name)
  alpha, sigma = schedule(time_sampling('log_normal')(jax.random.key(0), (20_000,), schedule))
  log_level = jnp.log(sigma / alpha)
  assert float(log_level.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(20_000))
  assert float(log_level.std()) == pytest.approx(1.2, rel=4 / math.sqrt(40_000))


@pytest.mark.parametrize('name', ['logit_normal', 'log_normal'])
def test_a_deviation_is_positive(name):
  with pytest.raises(ValueError, match='std: got 0'):
    time_sampling(name, std=0.0)
