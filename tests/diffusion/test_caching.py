"""Caching on a network whose residual is a straight line over the steps, which order 1 forecasts exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.caching import Caching
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import Guidance, guidance_of
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from tests.conftest import tiny_mapping
from tests.diffusion.test_schedules import build

STEPS, TOKENS, WIDTH = 12, 4, 1


def test_which_steps_run():
  """Three at first, then every third."""
  caching = Caching(interval=3, order=1, first=3)
  assert np.flatnonzero(caching.runs(np.arange(12))).tolist() == [0, 1, 2, 5, 8, 11]
  assert caching.share(12) == 0.5 and Caching().share(12) == 1
  reuse = Caching(interval=4, order=0, first=1)
  assert np.flatnonzero(reuse.runs(np.arange(12))).tolist() == [0, 4, 8]


def network(ran):
  """Predicts v; what its blocks add depends on time and label alone."""

  def apply(x, time, condition, residual):
    if residual is None:
      jax.debug.callback(lambda: ran.append(1))
      values = (time / 1000 - 0.5) * (1 + condition['label'])  # (B,)
      residual = jnp.broadcast_to(values[:, None, None], (len(x), TOKENS, WIDTH))
    return residual.reshape(x.shape) + 0.1 * x, residual

  return apply


def sampled(caching, guidance, ran):
  schedule = build('cosine')
  generator = Generator(
    Process(schedule, 'v'),
    DDIM(schedule),
    np.linspace(0.9, 0.1, STEPS + 1),
    (2, 2, 1),
    seed=0,
    null_label=3,
    guidance=guidance,
    clip_x0=False,
    caching=caching,
    residual=(TOKENS, WIDTH),
  )
  own = network(ran)
  used = own if caching else lambda *inputs: own(*inputs, None)[0]
  indices, labels = jnp.arange(5, dtype=jnp.uint32), jnp.arange(5, dtype=jnp.int32) % 3
  x_0, _ = jax.jit(lambda: generator(used, indices, labels))()
  jax.effects_barrier()
  return np.asarray(x_0), generator.evaluations()


@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_forecast_steps_give_what_running_them_would(scale):
  guidance = guidance_of(scale)
  ran: list[int] = []
  expected, cost = sampled(None, guidance, ran)
  assert len(ran) == STEPS and cost == STEPS * (1 if scale == 1 else 2)
  for caching, runs in ((Caching(3, 1, 3), 6), (Caching(4, 2, 2), 4)):
    ran.clear()
    found, cheaper = sampled(caching, guidance, ran)
    assert len(ran) == runs and cheaper == cost * runs / STEPS
    np.testing.assert_allclose(found, expected, atol=2e-5)
  reused, _ = sampled(Caching(3, 0, 3), guidance, ran)
  assert np.abs(reused - expected).max() > 0.01


def test_momentum_is_remembered_beside_the_cache():
  guidance = Guidance(scale=3.0, momentum=-0.5)
  expected, _ = sampled(None, guidance, [])
  found, _ = sampled(Caching(3, 1, 3), guidance, [])
  np.testing.assert_allclose(found, expected, atol=2e-5)
  assert np.abs(sampled(None, guidance_of(3.0), [])[0] - expected).max() > 0.01


def test_where_it_makes_no_sense(tmp_path):
  cache = {'sample.cache.interval': 3}
  assert create(tiny_mapping(tmp_path, **cache)).caching == Caching(3, 1, 3)
  guided = {'sample.cfg_scale': 2.0}
  for changes in (
    {'model.name': 'unet'},
    {**guided, 'sample.guidance.interval': (0.1, 2.0)},
    {**guided, 'sample.guidance.checkpoint': '2'},
  ):
    with pytest.raises(InputError, match=r'config\.sample\.cache\.interval: got 3, allowed 1 with'):
      create(tiny_mapping(tmp_path, **cache, **changes))
  with pytest.raises(InputError, match=r'cache\.order: got 4, allowed 0\.\.3'):
    create(tiny_mapping(tmp_path, **cache, **{'sample.cache.order': 4}))
