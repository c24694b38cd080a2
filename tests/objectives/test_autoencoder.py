"""The autoencoder's step against its losses written out, and what it does over steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import vae
from diffusion_jax.diffusion.pixels import from_uint8
from diffusion_jax.experiment.checks import create
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.perceptual import LPIPS
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.objectives.autoencoder import (
  ADVERSARIAL,
  ALONE,
  Autoencoder,
  holdout_sums,
)
from diffusion_jax.objectives.base import Context, x0_of
from diffusion_jax.pretrained import lpips
from diffusion_jax.randomness import fold_in_each, normal_each
from diffusion_jax.training import compilation
from diffusion_jax.training.state import create_state
from diffusion_jax.training.step import make_train_step
from tests.conftest import tiny_mapping

SHAPE = (16, 16, 3)


def perceptual(a, b):
  """Some distance; its derivative is not finite where all of a is 1, white.

  A threshold and not 1 - mean: the mean of ones rounds to above 1 with some compilers.
  """
  root = jnp.sqrt(jnp.where(jnp.mean(a) > 0.999, 0.0, 1.0) + 0 * jnp.mean(jnp.square(b)))
  return jnp.mean(jnp.abs(a - b) ** 1.5, axis=(1, 2, 3)) + 1e-6 * root


MODEL = AutoencoderKL(
  channels=32, channel_mult=(1, 1), num_res_blocks=1, z_channels=2, embed_channels=2
)
JUDGE = PatchDiscriminator(8, 1)
OPTIONS = Autoencoder(
  kl_weight=1e-3, perceptual_weight=0.7, discriminator_channels=8, discriminator_layers=1
)


def make_objective(distance=perceptual, **changes):
  """Of MODEL and JUDGE, with `perceptual` for LPIPS."""
  context = Context(
    image_shape=SHAPE,
    x0_shape=SHAPE,
    ema_decay=0.999,
    make_autoencoder=lambda: MODEL,
    make_optimizer=lambda first_step=0: optax.adam(1e-3),
  )

  def gradients(state, frozen, batch, draws, phase):
    images = x0_of(batch, None, draws.keys, flip=False)
    noise = normal_each(fold_in_each(draws.keys, 1), (8, 8, 2))
    arguments = (MODEL, JUDGE, state.params, images, noise, distance)
    return OPTIONS.gradients(*arguments, adversarial=phase == ADVERSARIAL)

  objective = OPTIONS.build(context)
  return dataclasses.replace(objective, frozen=dict, **{'gradients': gradients, **changes})


def state_of(objective):
  return create_state(jax.jit(objective.init)(), objective.optimizers)


def step_of(objective):
  """(state, batch, adversarial): two programs."""

  @functools.partial(jax.jit, static_argnames='adversarial')
  def step(state, batch, adversarial):
    phase = ADVERSARIAL if adversarial else ALONE
    return make_train_step(objective, 0, phase)(state, batch, {})

  return step


def with_parts(state, **parts):
  return state.replace(params={**state.params, **parts})


def make_batch(size=4, seed=0):
  coarse = np.random.default_rng(seed).integers(0, 256, (size, 4, 4, 3))
  image = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
  return {'image': image, 'label': np.zeros(size, np.int32)}


@pytest.fixture(scope='module')
def state():
  return state_of(make_objective())


@pytest.fixture(scope='module')
def step():
  """Shared by the tests below."""
  return step_of(make_objective())


def test_gradients_are_those_of_the_loss_written_out(state):
  images = from_uint8(make_batch()['image'])
  noise = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))

  @jax.jit
  def gradients(parts):
    return OPTIONS.gradients(MODEL, JUDGE, parts, images, noise, perceptual, adversarial=True)

  found, metrics = gradients(state.params)

  def parts(params):
    made, q = MODEL.apply({'params': params}, images, noise)
    pixels = jnp.abs(made - images).sum((1, 2, 3)) + 0.7 * 768 * perceptual(images, made)
    kl = 0.5 * (q.mean**2 + jnp.exp(q.logvar) - 1 - q.logvar).sum((1, 2, 3))
    judged = JUDGE.apply({'params': state.params['discriminator']}, made)
    return jnp.mean(pixels), jnp.mean(kl), -jnp.mean(judged)

  def last_layer(number, params):
    grads = jax.grad(lambda p: parts(p)[number])(params)
    return jnp.linalg.norm(grads['decoder']['conv_out']['kernel'].reshape(-1))

  @jax.jit
  def written_out(params):
    weight = 0.5 * last_layer(0, params) / (last_layer(2, params) + 1e-4)

    def whole(params):
      reconstruction, kl, fooling = parts(params)
      return reconstruction + 1e-3 * kl + weight * fooling

    return jax.grad(whole)(params), weight, parts(params)[1]

  expected, weight, kl = written_out(state.params['model'])
  np.testing.assert_allclose(metrics['adaptive_weight'], weight, rtol=1e-3)
  assert weight > 1
  largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(expected))
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(found['model']), jax.tree.leaves(expected)
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest, err_msg=str(path))
  np.testing.assert_allclose(metrics['kl'], kl, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_discriminator_changes_only_when_it_is_on(step, state):
  for adversarial in (False, True):
    after, metrics = step(state, make_batch(), adversarial=adversarial)
    found, before = (x.params['discriminator'] for x in (after, state))
    same = jax.tree.map(np.array_equal, found, before)
    assert all(jax.tree.leaves(same)) != adversarial
    assert ('discriminator_loss' in metrics) == adversarial
    if adversarial:  # Untrained logits are near 0: both hinges near 1.
      np.testing.assert_allclose(metrics['discriminator_loss'], 1, atol=0.05)
    assert int(after.step) == 1 and int(after.skipped) == 0


@pytest.mark.slow
@pytest.mark.unoptimised
def test_bad_steps_change_nothing(step, state):
  broken = with_parts(state, model=jax.tree.map(lambda p: p * np.nan, state.params['model']))
  after, metrics = step(broken, make_batch(), adversarial=True)
  assert int(metrics['skipped']) == 1 and int(after.step) == 1
  after = after.replace(step=broken.step, skipped=broken.skipped)
  jax.tree.map(np.testing.assert_array_equal, after, broken)


@pytest.mark.slow
def test_finite_losses_with_non_finite_gradients_change_nothing(step, state):
  """In the perceptual loss of white images; then in the discriminator, whose squares overflow."""
  judge = state.params['discriminator']
  kernel = judge['conv_out']['kernel']
  large = {**judge, 'conv_out': {'kernel': kernel * 1e30, 'bias': jnp.zeros(1)}}
  white = {**make_batch(), 'image': np.full((4, *SHAPE), 255, np.uint8)}
  for before, batch in ((state, white), (with_parts(state, discriminator=large), make_batch())):
    after, metrics = step(before, batch, adversarial=True)
    assert all(np.isfinite(metrics[name]) for name in ('loss', 'discriminator_loss'))
    assert np.isfinite(metrics['grad_norm']) == (batch is not white)
    assert int(after.skipped) == 1
    after = after.replace(step=before.step, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_average_reaches_the_configured_decay(step, state):
  """0.999, as configs/vae.py has it."""
  zero = jax.tree.map(jnp.zeros_like, state.averages)
  late = state.replace(step=jnp.int32(10**6), averages=zero)
  after, _ = step(late, make_batch(), adversarial=False)
  for average, p in zip(
    *map(jax.tree.leaves, (after.averages['ema']['model'], after.params['model']))
  ):
    np.testing.assert_allclose(average, 1e-3 * p, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_it_learns_to_reconstruct(state, step):
  """Without the adversary: the error on the training batch falls by half in 60 steps."""
  errors = []
  for _ in range(60):
    state, metrics = step(state, make_batch(), adversarial=False)
    errors.append(float(metrics['reconstruction']))
  assert errors[-1] < errors[0] / 2
  batch = {**make_batch(), 'index': np.asarray([0, 1, 2, -1])}
  measure = jax.jit(functools.partial(holdout_sums, MODEL, state.params['model']))
  sums = measure(batch)
  alone = [measure({'image': batch['image'][i : i + 1], 'index': np.zeros(1)}) for i in range(3)]
  assert float(sums['count']) == 3
  for name in ('psnr', 'reconstruction', 'kl'):
    np.testing.assert_allclose(sums[name], sum(float(x[name]) for x in alone), rtol=1e-4)


def test_discriminator_judges_patches_of_each_image_alone():
  module = PatchDiscriminator(8, 2)
  x = jax.random.normal(jax.random.key(0), (3, 32, 32, 3))
  params = jax.jit(module.init)(jax.random.key(1), x)['params']
  apply = jax.jit(module.apply)
  out = apply({'params': params}, x)
  assert out.shape == (3, 6, 6, 1) and out.dtype == jnp.float32
  np.testing.assert_allclose(apply({'params': params}, x.at[0].set(0))[1:], out[1:], atol=1e-5)
  right = apply({'params': params}, x.at[:, :, 16:].set(0))  # A patch sees 34 pixels at most.
  assert not np.allclose(right, out)


@pytest.mark.unoptimised
@pytest.mark.slow
@pytest.mark.parametrize('name', ['model', 'discriminator'])
def test_a_step_to_parameters_that_are_not_finite_changes_nothing(name):
  """Of the autoencoder, or of the discriminator alone; all gradients are finite."""
  optimizers = {**make_objective().optimizers, name: optax.sgd(jnp.inf)}
  objective = make_objective(optimizers=optimizers)
  before = state_of(objective)
  after, metrics = step_of(objective)(before, make_batch(), adversarial=True)
  assert np.isfinite(metrics['grad_norm']) and int(after.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)


SMALL = {
  'objective.name': 'autoencoder',
  'checkpoint.best_metric': 'holdout_psnr',
  'data.image_size': 16,
  'data.channels': 3,
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'objective.autoencoder.discriminator_channels': 8,
  'objective.autoencoder.discriminator_layers': 1,
  'objective.autoencoder.discriminator_start': 2,
  'optimizer.warmup_steps': 4,
}


def test_the_perceptual_network_is_an_argument_of_every_program(tmp_path, monkeypatch):
  """14.7 million weights: as constants they would be in the executable twice."""
  image = jnp.zeros((1, 16, 16, 3))
  abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)['params']
  weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  monkeypatch.setattr(lpips, 'load', lambda path, allow_pickle: weights)
  experiment = create(tiny_mapping(tmp_path, **SMALL))
  objective, given = experiment.objective, []
  monkeypatch.setattr(compilation, 'compile_step', lambda *arguments: given.append(arguments))
  batch = {'image': np.zeros((2, 16, 16, 3), np.uint8), 'label': np.zeros(2, np.int32)}
  state, frozen = experiment.abstract_state, objective.frozen()
  compilation.compile_steps(objective, 0, state, batch, frozen, {}, range(1, 5))
  assert len(given) == 2  # With the discriminator and without.
  for train_step, *arguments, _data, _count in given:
    constants = jax.make_jaxpr(train_step)(*arguments).consts
    assert sum(np.size(x) * np.dtype(x.dtype).itemsize for x in constants) < 2**16
    assert jax.tree.structure(arguments[-1]) == jax.tree.structure(weights)


def test_the_discriminator_follows_the_schedule_of_the_run(tmp_path):
  """It starts at step 2 of a warm-up over 4 to 1e-3; Adam's first step moves by the rate."""
  changes = {**SMALL, 'optimizer.learning_rate': 1e-3, 'optimizer.clip_norm': 0.0}
  objective = create(tiny_mapping(tmp_path, **changes)).objective
  optimizer, params = objective.optimizers['discriminator'], {'kernel': jnp.ones(2)}
  updates, _ = optimizer.update({'kernel': jnp.full(2, 0.3)}, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.75e-3, rtol=1e-4)


def test_the_published_training_does_not_clip():
  assert vae.get_config().optimizer.clip_norm == 0
