"""Sampling with learned variance, against fixed variances, another library, and in an experiment."""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import ddpm
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.training.step import make_train_step
from diffusion_jax.types import Prediction
from tests.conftest import tiny_mapping
from tests.diffusion.test_samplers import exact_denoiser, keys_of
from tests.diffusion.test_schedules import build
from tests.diffusion.test_schedules import times as times_of

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 1)), jnp.float32)


@pytest.mark.parametrize('spacing', ['trailing', 'leading'])
@pytest.mark.parametrize('num_steps', [10, 1000])
@pytest.mark.parametrize('v, fixed', [(-1, 'fixed_small'), (1, 'fixed_large')])
def test_at_its_ends_it_is_a_fixed_variance_step_for_step(v, fixed, num_steps, spacing):
  schedule = build('linear')
  process = Process(schedule, 'eps', learned_variance=True)

  def with_v(x_t, t):
    eps = exact_denoiser(schedule)(x_t, t).eps
    return process.to_prediction(jnp.concatenate([eps, jnp.full_like(eps, v)], -1), x_t, t)

  @jax.jit
  def steps(x, t, s):
    learned, same = (ddpm.DDPM(schedule=schedule, variance=name) for name in ('learned', fixed))
    arguments = (keys_of(2), x, t, s)
    return learned.step(*arguments, with_v, ())[0], same.step(
      *arguments, exact_denoiser(schedule), ()
    )[0]

  x, times = X, times_of(schedule, num_steps, spacing)
  for t, s in itertools.pairwise(times):
    x, expected = steps(x, jnp.float32(t), jnp.float32(s))
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


REFERENCE = json.loads((Path(__file__).parents[1] / 'fixtures/learned_variance.json').read_text())


@pytest.mark.parametrize('name', REFERENCE['steps'])
def test_steps_agree_with_the_reference_library(name, monkeypatch):
  """On random outputs; fixtures/make_learned_variance.py says the rest. Index = timestep + 1."""
  schedule = build('linear')
  process = Process(schedule, name.split('-')[0], learned_variance=True)

  def both(case, dtype):
    x_t, output, v = (jnp.asarray(case[key], dtype) for key in ('x_t', 'output', 'v'))
    noise = jnp.asarray(case['noise'], dtype)
    monkeypatch.setattr(ddpm, 'normal_each', lambda keys, shape: noise)
    t, s = (jnp.asarray((case[key] + 1) / 1000, dtype) for key in ('timestep', 'previous'))
    output = jnp.concatenate([output, v], axis=-1)
    sampler = ddpm.DDPM(schedule=schedule, variance='learned')
    small, large = ddpm.log_variance_bounds(schedule, t, s)
    fraction = process.to_prediction(output, x_t, t).variance
    x_s, _ = sampler.step(
      keys_of(1), x_t, t, s, lambda x, t: process.to_prediction(output, x, t), ()
    )
    return np.exp(small + fraction * (large - small)), x_s

  for case in REFERENCE['steps'][name]:
    expected, sample = np.exp(case['log_variance']), np.asarray(case['sample'])
    with jax.enable_x64():
      variance, x_s = both(case, jnp.float64)
    np.testing.assert_allclose(x_s, sample, rtol=1e-9)
    if case['previous'] >= 0:  # Theirs is log(1e-20) where the published code clips.
      np.testing.assert_allclose(variance, expected, rtol=1e-9)
    variance, x_s = both(case, jnp.float32)
    assert x_s.dtype == jnp.float32
    assert np.abs(x_s - sample).max() <= 1e-5 * np.abs(sample).max()
    if case['previous'] >= 0:
      np.testing.assert_allclose(variance, expected, rtol=1e-4)  # 1 - a ratio in float32.


def test_the_variance_of_the_last_step_is_bounded_as_published():
  """posterior_log_variance_clipped: at timestep 0 the value of timestep 1; the noise is none."""
  schedule = build('linear')
  betas = np.linspace(1e-4, 0.02, 1000)
  bars = np.cumprod(1 - betas)
  small, large = ddpm.log_variance_bounds(
    schedule, jnp.asarray([0.001, 0.002]), jnp.asarray([0, 0.001])
  )
  posterior = betas[1] * (1 - bars[0]) / (1 - bars[1])
  np.testing.assert_allclose(small, np.log([posterior, posterior]), rtol=1e-5)
  np.testing.assert_allclose(large, np.log(betas[:2]), rtol=1e-5)
  sampler = ddpm.DDPM(schedule=schedule, variance='learned')
  x_0, _ = sampler.step(
    keys_of(2), X, jnp.float32(0.1), jnp.float32(0), lambda x, t: Prediction(x / 2, x, 9 * x), ()
  )
  np.testing.assert_allclose(x_0, X / 2, rtol=1e-6)


LEARNED = {
  'process.learned_variance': True,
  'process.prediction_type': 'eps',
  'schedule.name': 'linear',
  'sampler.name': 'ddpm',
  'sampler.ddpm.variance': 'learned',
  'sample.cfg_scale': 2.0,
}


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('name', ['dit', pytest.param('unet', marks=pytest.mark.full)])
def test_an_experiment_trains_and_samples(tiny, name):
  small = {'model.dit.depth': 1, 'model.unet.num_res_blocks': 1, 'model.unet.channels': 32}
  experiment = tiny(
    **LEARNED, **small, **{'model.name': name, 'objective.denoising.vlb_weight': 0.5}
  )
  assert experiment.config.objective.options['vlb_weight'] == 0.5
  state = jax.jit(experiment.init_state)()
  batch = experiment.train_data.read(np.arange(16))
  after, metrics = jax.jit(make_train_step(experiment.objective, 0))(state, batch, {})
  assert np.isfinite(metrics['loss']) and int(after.skipped) == 0
  network = experiment.objective.network(after.params)
  labels = jnp.arange(4)
  out = jax.eval_shape(network, jnp.zeros((4, 8, 8, 1)), jnp.zeros(4), {'label': labels})
  assert out.shape == (4, 8, 8, 2) and experiment.image_shape == (8, 8, 1)
  images, frames = jax.jit(lambda n, y: experiment.generator(2, 1)(network, n, y))(labels, labels)
  assert images.shape == (4, 8, 8, 1) and frames.shape == (2, 1, 8, 8, 1)
  assert np.all(np.isfinite(images))


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'process.learned_variance': False},
      "config.sampler.ddpm.variance: got 'learned', allowed 'fixed_small', 'fixed_large' unless",
    ),
    (
      {'schedule.name': 'rectified_flow', 'process.prediction_type': 'v'},
      "config.process.learned_variance: got True, allowed False with config.schedule.name 'rectified",
    ),
    (
      {'schedule.linear.num_timesteps': 1, 'sample.num_steps': 1},
      "config.process.learned_variance: got True, allowed False with config.schedule.name 'linear",
    ),
    (
      {'objective.denoising.vlb_weight': -1.0},
      'config.objective.denoising.vlb_weight: got -1.0, allowed >= 0',
    ),
  ],
)
def test_what_cannot_work_is_refused(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    create(tiny_mapping(tmp_path, **{**LEARNED, **changes}))


def test_ddim_does_not_look_at_the_learned_variance(tiny):
  experiment = tiny(**{**LEARNED, 'sampler.name': 'ddim'})

  def images(v):
    def network(x, time, condition):
      return jnp.concatenate([x / 2, jnp.full_like(x, v)], axis=-1)

    return experiment.generator()(network, jnp.arange(2), jnp.arange(2))[0]

  np.testing.assert_array_equal(images(-1.0), images(5.0))
