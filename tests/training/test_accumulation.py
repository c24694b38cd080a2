"""A batch taken in passes gives the update of the whole batch, dropout included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.training import accumulation
from diffusion_jax.training.accumulation import accumulated
from diffusion_jax.training.step import draws_of, make_train_step
from tests.conftest import tiny_mapping

AUTOENCODER = {
  'objective.name': 'autoencoder',
  'objective.autoencoder.perceptual_weight': 0.0,
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'checkpoint.best_metric': 'holdout_psnr',
}
SYSTEMS = {
  'dit': {},
  'unet': {'model.name': 'unet', 'model.unet.dropout': 0.5},
  'autoencoder': AUTOENCODER,
}


def gradients(experiment, accumulate):
  """Those of a batch of 8, with the metrics."""
  objective, random = experiment.objective, np.random.default_rng(3)
  state = jax.jit(experiment.init_state)()
  shaken = jax.tree.map(  # Away from the zeros of the initialisation.
    lambda p: p + 0.03 * random.normal(size=p.shape).astype(np.float32), state.params
  )
  batch, draws = experiment.train_data.read(np.arange(8)), draws_of(0, state.step, 8)
  work = functools.partial(accumulated, objective, accumulate, phase=objective.phase(1))
  run = jax.jit(lambda state, batch: work(state, {}, batch, draws=draws))
  return jax.device_get(run(state.replace(params=shaken), batch))


def assert_same(found, expected, rtol=1e-6):
  """To rtol of the norm of all."""
  assert optax.tree.norm(optax.tree.sub(found, expected)) <= rtol * optax.tree.norm(expected)


@pytest.mark.unoptimised
@pytest.mark.parametrize(
  'system',
  ['dit', *(pytest.param(name, marks=pytest.mark.slow) for name in ('unet', 'autoencoder'))],
)
def test_passes_give_the_gradients_of_one_batch(tiny, system):
  experiment = tiny(**SYSTEMS[system])
  expected, metrics = gradients(experiment, 1)
  for accumulate in (2, 4) if system == 'dit' else (2,):  # A UNet takes long to compile.
    found, again = gradients(experiment, accumulate)
    # Sums of |error| over pixels round more coarsely: 1.1e-6 was measured.
    assert_same(found, expected, rtol=2e-6 if system == 'autoencoder' else 1e-6)
    for name in metrics:
      np.testing.assert_allclose(again[name], metrics[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_a_loop_gives_what_unrolled_passes_give(tiny, monkeypatch):
  experiment = tiny()
  expected, _ = gradients(experiment, 4)
  monkeypatch.setattr(accumulation.jax, 'default_backend', lambda: 'tpu')
  found, _ = gradients(experiment, 4)
  assert_same(found, expected)


def test_what_cannot_be_taken_in_passes_is_refused(tmp_path):
  adversarial = {
    **AUTOENCODER,
    'objective.autoencoder.discriminator_layers': 1,
    'train.accumulate': 2,
  }
  for start in (0, 2):
    changes = {**adversarial, 'objective.autoencoder.discriminator_start': start}
    with pytest.raises(InputError, match=r'config\.train\.accumulate'):
      create(tiny_mapping(tmp_path, **changes))
  create(tiny_mapping(tmp_path, **adversarial))  # It starts after the last step.


@pytest.mark.slow
@pytest.mark.unoptimised
def test_a_gradient_above_the_limit_changes_nothing(tiny):
  experiment = tiny()
  batch = experiment.train_data.read(np.arange(8))

  def step(limit):
    state = jax.jit(experiment.init_state)()
    made = make_train_step(experiment.objective, 0, skip_grad_norm_above=limit)
    after, metrics = jax.jit(made)(state, batch, {})
    same = jax.tree.map(lambda a, b: jnp.all(a == b), after.params, state.params)
    return float(metrics['grad_norm']), int(metrics['skipped']), all(jax.tree.leaves(same))

  norm, skipped, same = step(0.0)
  assert norm > 0 and skipped == 0 and not same
  assert step(0.99 * norm)[1:] == (1, True)
  assert step(1.01 * norm)[1:] == (0, False)
