"""Samplers on Gaussian data, where everything is known, and against published loop results.

Data N(mu, c^2) has x_t ~ N(alpha mu, alpha^2 c^2 + sigma^2), so
  E[x0 | x_t] = mu + alpha c^2 (x_t - alpha mu) / (alpha^2 c^2 + sigma^2),
and the probability flow keeps (x_t - alpha mu) / sqrt(alpha^2 c^2 + sigma^2) constant.
"""

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
from tests.support.samplers import run_by_steps, run_sampler

MU, C = 0.7, 0.4
SAMPLERS = plugin_names('diffusion.samplers')
DETERMINISTIC = [
  ('ddim', {}),
  ('euler', {}),
  ('heun', {}),
  ('heun', {'variable': 'sigma'}),
  ('dpmpp_2m', {}),
  ('deis', {}),
  ('unipc', {}),
  ('unipc', {'order': 3}),
  ('unipc', {'order': 3, 'b_h': 'bh1', 'lower_order_final': False}),
]


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
  """Shape, dtype, finite at both ends, traced once for all noise and keys."""
  schedule, traces = build('cosine', zero_terminal_snr=True), []

  def run(x, keys):
    traces.append(1)
    return run_sampler(
      sampler(name, schedule), exact_denoiser(schedule), x, keys, times_of(schedule, 5)
    )[0]

  jitted = jax.jit(run)
  x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
  first, second, other = jitted(x, keys_of(3)), jitted(x, keys_of(3)), jitted(-x, keys_of(6)[3:])
  assert first.shape == x.shape and first.dtype == jnp.float32 and len(traces) == 1
  assert np.all(np.isfinite(first)) and np.all(np.isfinite(other)) and np.any(other != first)
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize('name, options', DETERMINISTIC)
def test_from_pure_noise_to_clean_data(name, options):
  """Rectified flow starts at alpha = 0: finite, and 1,000 steps in float32 end where the flow does.

  It keeps (x_t - alpha mu) / sqrt(alpha^2 c^2 + sigma^2), so that x_0 = mu + c x_1. One step takes the mean.
  In the last grid times are doubled, as are those that a table cannot tell apart in float32.
  """
  schedule, x = build('rectified_flow'), jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  grids = [times_of(schedule, n) for n in (1, 3, 1000)]
  grids += [np.array([0.9, 0.7, 0.4, 0.2, 0]), np.array([0.9, 0.7, 0.7, 0.7, 0.4, 0.2, 0])]
  solver = sampler(name, schedule, **options)
  one, three, thousand, plain, doubled = run_by_steps(
    solver, exact_denoiser(schedule), x, keys_of(5), grids
  )
  np.testing.assert_allclose(one, MU, atol=1e-6)
  assert np.all(np.isfinite(three))
  first_order, multistep = name in ('ddim', 'euler'), name in ('deis', 'dpmpp_2m', 'unipc')
  np.testing.assert_allclose(thousand, MU + C * x, atol=2e-3 if first_order else 1e-4)
  np.testing.assert_allclose(doubled, plain, atol=0.05 if multistep else 1e-6)


@pytest.mark.parametrize('variable', ['flow', 'sigma'])
def test_heun_starts_well_where_alpha_is_nearly_0(variable):
  """sigma / alpha is 20,000 at the end of cosine, and 12 one step of 20 later."""
  schedule, x = build('cosine'), jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  solver, times = sampler('heun', schedule, variable=variable), times_of(schedule, 20)
  found, _ = run_sampler(solver, exact_denoiser(schedule), x, keys_of(5), times)
  np.testing.assert_allclose(found, MU + C * x, atol=0.03)


@pytest.mark.parametrize('name', SAMPLERS)
def test_evaluations_are_the_calls_of_the_denoiser(name):
  """Counted where they run: a branch that is not taken costs nothing."""
  schedule, calls = build('cosine'), []

  def denoise(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return exact_denoiser(schedule)(x, t)

  solver = sampler(name, schedule)
  run_sampler(solver, denoise, jnp.ones((1, 1, 1, 1)), keys_of(1), times_of(schedule, 5))
  jax.effects_barrier()
  assert len(calls) == solver.evaluations(5) == (9 if name == 'heun' else 5)


def test_euler_is_ddim_and_the_euler_method_of_rectified_flow():
  """And Heun's in its variable 'flow' is Heun's method in t."""
  schedule = build('rectified_flow')
  denoise, x = exact_denoiser(schedule), jnp.linspace(-2, 2, 5).reshape(5, 1, 1, 1)
  t, s = jnp.float32(0.8), jnp.float32(0.6)

  def velocity(x, t):
    prediction = denoise(x, t)
    return prediction.eps - prediction.x0

  def step(name):
    solver = sampler(name, schedule)
    return solver.step(keys_of(5), x, t, s, denoise, solver.init(x, np.array([0.8, 0.6, 0])))[0]

  euler = x + (s - t) * velocity(x, t)
  np.testing.assert_allclose(step('euler'), euler, rtol=1e-6)
  np.testing.assert_array_equal(step('euler'), step('ddim'))
  heun = x + (s - t) / 2 * (velocity(x, t) + velocity(euler, s))
  np.testing.assert_allclose(step('heun'), heun, rtol=1e-5)


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
