"""Inversion on Gaussian data, whose flow is known, and what lies between two noises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import Guidance
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.diffusion.samplers.ddpm import DDPM
from diffusion_jax.diffusion.samplers.dpmpp_2m import DPMpp2M
from diffusion_jax.diffusion.samplers.heun import Heun
from diffusion_jax.diffusion.spacings.karras import Karras
from diffusion_jax.errors import InputError
from diffusion_jax.run import Run
from diffusion_jax.sampling.inversion import between, invert, require_deterministic, upwards
from tests.diffusion.test_schedules import build
from tests.diffusion.test_schedules import times as times_of

MU, C = 0.3, 0.5


def exact_network(schedule):
  """Predicts x0 of data N(MU, C^2)."""

  def network(x, time, condition):
    n = schedule((time + 1) / schedule.num_timesteps if schedule.num_timesteps else time / 1000)
    alpha, sigma = (value[:, None, None, None] for value in n)
    return MU + alpha * C**2 * (x - alpha * MU) / (alpha**2 * C**2 + sigma**2)

  return network


def generator(sampler, schedule, num_steps):
  return Generator(
    Process(schedule, 'x0'),
    sampler,
    Karras()(schedule, num_steps) if schedule(1.0).alpha == 1 else times_of(schedule, num_steps),
    (2, 2, 1),
    seed=0,
    null_label=0,
    guidance=Guidance(),
    clip_x0=False,
  )


@pytest.mark.parametrize('name', ['cosine', 'rectified_flow', 'variance_exploding'])
@pytest.mark.parametrize('make, most', [(DDIM, 0.1), (Heun, 0.02), (DPMpp2M, 0.02)])
def test_data_go_where_the_flow_takes_them_and_come_back(name, make, most):
  """(x_t - alpha mu) / deviation stays as it is: noise is (x0 - mu) / c."""
  schedule = build(name)
  process = generator(make(schedule), schedule, 100)
  x0 = jnp.linspace(-0.6, 1.2, 12).reshape(3, 2, 2, 1)
  labels, network = jnp.zeros(3, jnp.int32), exact_network(schedule)
  noise = jax.jit(lambda x0: invert(upwards(process), network, x0, labels))(x0)
  np.testing.assert_allclose(noise, (x0 - MU) / C, atol=most * 4)

  def sampled(noise):
    state, index = process.start(noise), jnp.zeros(3, jnp.uint32)
    return process.advance(network, index, labels, state, process.steps, process.arguments).x_t

  assert np.abs(jax.jit(sampled)(noise) - x0).max() < most


def test_what_draws_noise_is_refused(tiny):
  schedule = build('cosine')
  for sampler in (
    DDIM(schedule, 0.5),
    DDPM(schedule),
    DPMpp2M(schedule, True),
    Heun(schedule, 5.0),
  ):
    assert not generator(sampler, schedule, 6).is_deterministic(), sampler
  for sampler in (DDIM(schedule), DPMpp2M(schedule), Heun(schedule)):
    assert generator(sampler, schedule, 6).is_deterministic(), sampler
  with pytest.raises(InputError, match=r"config\.sampler\.name: got 'ddpm'"):
    require_deterministic(tiny(**{'sampler.name': 'ddpm'}))


def test_between_two_noises_the_radius_stays():
  first, second = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)).astype(np.float32)
  second *= np.linalg.norm(first.reshape(3, -1), axis=1)[:, None, None, None]
  second /= np.linalg.norm(second.reshape(3, -1), axis=1)[:, None, None, None]
  second *= np.linalg.norm(first.reshape(3, -1), axis=1)[:, None, None, None]
  found = between(first, second, 5)
  np.testing.assert_allclose(found[:, 0], first, atol=1e-6)
  np.testing.assert_allclose(found[:, -1], second, atol=1e-5)
  norms = np.linalg.norm(found.reshape(3, 5, -1), axis=2)
  np.testing.assert_allclose(norms, np.broadcast_to(norms[:, :1], norms.shape), rtol=1e-5)
  np.testing.assert_allclose(between(first, first, 3)[:, 1], first, atol=1e-6)


def test_a_run_inverts_and_interpolates(tiny):
  """Any number of images, ends as they are sampled from their noise; guidance and cache play no part."""
  changes = {'sample.num_steps': 4, 'sample.cfg_scale': 3.0, 'sample.cache.interval': 2}
  run = Run(tiny(**changes))
  images = run.train_data.read(np.arange(3))['image']
  noise = run.invert(images, [1, 2, 3])
  assert noise.shape == (3, 8, 8, 1)
  plain = Run(tiny())
  np.testing.assert_allclose(plain.invert(images, [1, 2, 3], num_steps=4), noise, atol=1e-5)
  made = plain.interpolate(images[:2], images[1:], [1, 2], count=3, num_steps=4)
  assert made.shape == (2, 3, 8, 8, 1)
  ends = plain.sample([1], noise=noise[:1], num_steps=4, cfg_scale=1.0)
  assert np.abs(ends[0].astype(int) - made[0, 0]).max() <= 1
  with pytest.raises(InputError, match='labels: got'):
    run.invert(images, [1, 2, 30])
