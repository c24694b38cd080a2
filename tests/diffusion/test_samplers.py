"""Samplers on Gaussian data, where everything is known, and against published loop results.

Data N(mu, c^2) has x_t ~ N(alpha mu, alpha^2 c^2 + sigma^2), so
  E[x0 | x_t] = mu + alpha c^2 (x_t - alpha mu) / (alpha^2 c^2 + sigma^2),
and the probability flow keeps (x_t - alpha mu) / sqrt(alpha^2 c^2 + sigma^2) constant.
"""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_jax.config.plugins import make_plugin, plugin_names
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import ddim, ddpm
from diffusion_jax.diffusion.samplers.base import frame_slots
from diffusion_jax.randomness import example_keys, purpose_key
from diffusion_jax.types import Prediction
from tests.diffusion.test_schedules import build
from tests.diffusion.test_schedules import times as times_of
from tests.support.samplers import run_sampler

MU, C = 0.7, 0.4
SAMPLERS = plugin_names('diffusion.samplers')


def exact_denoiser(schedule, mu=MU, c=C):
  def denoise(x_t, t):
    alpha, sigma = schedule(t)
    x0 = mu + alpha * c**2 * (x_t - alpha * mu) / (alpha**2 * c**2 + sigma**2)
    return Prediction(x0, (x_t - alpha * x0) / sigma)

  return denoise


def keys_of(count):
  return example_keys(purpose_key(0, 'test'), jnp.arange(count))


def sampler(name, schedule, **changes):
  options = {**base.get_config().sampler[name].to_dict(), **changes}
  return make_plugin('diffusion.samplers', name, schedule=schedule, **options)


@pytest.mark.parametrize('name', SAMPLERS)
def test_contract(name):
  """Shape, dtype, finite at both ends, traced once for two calls."""
  schedule, traces = build('cosine'), []

  def run(x, keys):
    traces.append(1)
    return run_sampler(
      sampler(name, schedule), exact_denoiser(schedule), x, keys, times_of(schedule, 5)
    )[0]

  jitted = jax.jit(run)
  x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
  first, second = jitted(x, keys_of(3)), jitted(x, keys_of(3))
  assert first.shape == x.shape and first.dtype == jnp.float32 and len(traces) == 1
  assert np.all(np.isfinite(first))
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('name', ['cosine', 'linear', 'scaled_linear', 'rectified_flow'])
def test_ddim_converges_in_first_order(name):
  """Error at the end of [0.95, 0.05] against the exact flow, in float64."""
  with jax.enable_x64():
    schedule = build(name)
    x = jnp.linspace(-2, 2, 8, dtype=jnp.float64).reshape(8, 1, 1, 1)
    (a1, s1), (a0, s0) = schedule(jnp.float64(0.95)), schedule(jnp.float64(0.05))
    exact = a0 * MU + (x - a1 * MU) * np.sqrt((a0**2 * C**2 + s0**2) / (a1**2 * C**2 + s1**2))
    errors = []
    for num_steps in (20, 40, 80):
      times = np.linspace(0.95, 0.05, num_steps + 1)
      found, _ = run_sampler(
        ddim.DDIM(schedule=schedule, eta=0.0), exact_denoiser(schedule), x, keys_of(8), times
      )
      errors.append(float(jnp.abs(found - exact).max()))
  orders = np.log2(np.array(errors[:-1]) / errors[1:])
  np.testing.assert_allclose(orders, 1, atol=0.15)


@pytest.mark.parametrize('name', ['ddpm-fixed_small', 'ddpm-fixed_large', 'ddim-1', 'ddim-0.5'])
def test_stochastic_steps_have_the_exact_mean_and_variance(name):
  """One step t -> s from one x_t, 200,000 times: all moments in closed form.

  DDPM, and DDIM at eta = 1, draw from q(x_s | x_t, E[x0 | x_t]) (Ho et al. 2020, Eq. 7). DDIM at eta
  has eta^2 of its variance; its mean is alpha_s x0 + sqrt(sigma_s^2 - variance) eps.
  """
  schedule, t, s, x = build('linear'), 0.6, 0.45, 0.3
  kind, option = name.split('-')
  options = {'variance': option} if kind == 'ddpm' else {'eta': float(option)}
  (a_t, s_t), (a_s, _) = (map(float, schedule(jnp.float32(time))) for time in (t, s))
  count = 200_000
  x_s, _ = sampler(kind, schedule, **options).step(
    keys_of(count),
    jnp.full((count, 1, 1, 1), x),
    jnp.float32(t),
    jnp.float32(s),
    exact_denoiser(schedule),
    (),
  )
  beta = 1 - (a_t / a_s) ** 2
  x0 = MU + a_t * C**2 * (x - a_t * MU) / (a_t**2 * C**2 + s_t**2)
  posterior = (1 - a_s**2) / (1 - a_t**2) * beta
  if kind == 'ddpm':
    mean = a_s * beta / (1 - a_t**2) * x0 + a_t / a_s * (1 - a_s**2) / (1 - a_t**2) * x
    variance = beta if option == 'fixed_large' else posterior
  else:
    variance = float(option) ** 2 * posterior
    mean = a_s * x0 + np.sqrt(1 - a_s**2 - variance) * (x - a_t * x0) / s_t
  assert float(x_s.mean()) == pytest.approx(mean, abs=4 * np.sqrt(variance / count))
  assert float(x_s.var()) == pytest.approx(variance, rel=4 * np.sqrt(2 / count))


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_ddpm_ends_with_the_mean_and_variance_of_its_recursion(variance):
  """8 of 1000 steps; the expected moments follow from the same linear recursion in float64."""
  schedule = build('linear')
  count, times = 20_000, times_of(schedule, 8)
  x_T = jax.random.normal(jax.random.key(1), (count, 1, 1, 1))
  x_T = (x_T - x_T.mean()) / x_T.std()
  found, _ = jax.jit(
    lambda x, keys: run_sampler(
      sampler('ddpm', schedule, variance=variance), exact_denoiser(schedule), x, keys, times
    )
  )(x_T, keys_of(count))
  bar = schedule.alpha_bar
  m, v = 0.0, 1.0
  index = np.round(times * 1000).astype(int)
  for i, j in itertools.pairwise(index):
    beta = 1 - bar[i] / bar[j]  # Ho et al. 2020, Eq. 7, for the betas of the sub-sequence.
    on_x0 = np.sqrt(bar[j]) * beta / (1 - bar[i])
    on_x_t = np.sqrt(1 - beta) * (1 - bar[j]) / (1 - bar[i])
    gain = np.sqrt(bar[i]) * C**2 / (bar[i] * C**2 + 1 - bar[i])
    noise = {'fixed_small': (1 - bar[j]) / (1 - bar[i]) * beta, 'fixed_large': beta}[variance]
    slope = on_x_t + on_x0 * gain
    m = slope * m + on_x0 * (MU - gain * np.sqrt(bar[i]) * MU)
    v = slope**2 * v + (noise if j > 0 else 0)
  assert float(found.mean()) == pytest.approx(m, abs=4 * np.sqrt(v / count))
  assert float(found.var()) == pytest.approx(v, rel=4 * np.sqrt(2 / count))
  assert m == pytest.approx(MU, abs=0.01)


REFERENCE = json.loads((Path(__file__).parents[1] / 'fixtures/reference_loops.json').read_text())


@pytest.mark.parametrize('name', REFERENCE['ddim_loops'])
def test_ddim_loop_agrees_with_the_reference_library(name):
  """Ten steps with the made-up network of fixtures/make_reference_loops.py, which says the rest."""
  prediction, spacing = name.split('-')
  schedule = build('linear')
  process = Process(schedule, prediction)

  def denoise(x_t, t):
    time = schedule.network_time(t)
    found = process.to_prediction(x_t * time / (time + 1), x_t, t)
    return Prediction(jnp.clip(found.x0, -1, 1), found.eps)

  x = (np.arange(768) / 768).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2).astype(np.float32)
  found, _ = run_sampler(
    ddim.DDIM(schedule=schedule, eta=0.0), denoise, x, keys_of(4), times_of(schedule, 10, spacing)
  )
  expected = REFERENCE['ddim_loops'][name]
  assert float(jnp.abs(found).sum()) == pytest.approx(expected['sum'], rel=1e-5)
  assert float(jnp.abs(found).mean()) == pytest.approx(expected['mean'], rel=1e-5)


@pytest.mark.parametrize('name', REFERENCE['variances'])
def test_posterior_variance_agrees_with_the_reference_library(name):
  """Named by its timesteps; our index is one more."""
  schedule = build('linear')
  t, s = (jnp.float32((int(timestep) + 1) / 1000) for timestep in name.split('-'))
  found = float(ddpm.posterior_variance(schedule(t), schedule(s)))
  assert found == pytest.approx(REFERENCE['variances'][name], rel=2e-4)


def test_recorded_references_are_the_published_ones():
  """The numbers in the reference library's own test suite."""
  loops, variances = REFERENCE['ddim_loops'], REFERENCE['variances']
  assert loops['eps-leading'] == pytest.approx({'sum': 172.0067, 'mean': 0.223967}, abs=1e-2)
  assert loops['v-leading'] == pytest.approx({'sum': 52.5302, 'mean': 0.0684}, abs=1e-2)
  assert [variances[k] for k in ('487-486', '999-998', '420-400', '980-960')] == pytest.approx(
    [0.00979, 0.02, 0.14771, 0.32460], abs=1e-5
  )


def test_frames_are_evenly_spaced_states_of_the_same_run():
  np.testing.assert_array_equal(frame_slots(4, 3), [0, 3, 1, 3, 2])
  np.testing.assert_array_equal(frame_slots(4, 5), np.arange(5))
  with pytest.raises(ValueError, match='num_frames: got 6'):
    frame_slots(4, 6)
  schedule = build('cosine')
  times = times_of(schedule, 4)
  x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
  arguments = (sampler('ddpm', schedule), exact_denoiser(schedule), x, keys_of(3), times)
  plain, none = run_sampler(*arguments)
  result, frames = run_sampler(*arguments, num_frames=3, frame_examples=2)
  assert none.shape[0] == 0 and frames.shape == (3, 2, 2, 2, 1)
  np.testing.assert_array_equal(result, plain)
  np.testing.assert_array_equal(frames[0], x[:2])
  np.testing.assert_array_equal(frames[-1], result[:2])


def test_options_out_of_range():
  with pytest.raises(ValueError, match='eta: got'):
    ddim.DDIM(schedule=None, eta=1.5)
  with pytest.raises(ValueError, match='variance: got'):
    ddpm.DDPM(schedule=None, variance='large')
