"""The autoencoder's step against its losses written out, and what it does over steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.diffusion.pixels import from_uint8
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.training.autoencoder import AutoencoderTrainer

SHAPE = (16, 16, 3)


def perceptual(a, b):
  """Some distance; its derivative is not finite where all of a is 1, white."""
  root = jnp.sqrt(1 - jnp.mean(a) + 0 * jnp.mean(jnp.square(b)))
  return jnp.mean(jnp.abs(a - b) ** 1.5, axis=(1, 2, 3)) + 1e-6 * root


def make_trainer(**changes):
  module = AutoencoderKL(
    channels=32, channel_mult=(1, 1), num_res_blocks=1, z_channels=2, embed_channels=2
  )
  options = dict(
    module=module,
    discriminator=PatchDiscriminator(8, 1),
    optimizer=optax.adam(1e-3),
    discriminator_optimizer=optax.adam(1e-3),
    ema_decay=0.999,
    flip=False,
    seed=0,
    kl_weight=1e-3,
    perceptual_weight=0.7,
    discriminator_weight=0.5,
    perceptual=perceptual,
  )
  return AutoencoderTrainer(**{**options, **changes})


def make_batch(size=4, seed=0):
  coarse = np.random.default_rng(seed).integers(0, 256, (size, 4, 4, 3))
  image = coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
  return {'image': image, 'label': np.zeros(size, np.int32)}


@pytest.fixture(scope='module')
def trainer():
  return make_trainer()


@pytest.fixture(scope='module')
def state(trainer):
  return trainer.create_state(SHAPE)


@pytest.fixture(scope='module')
def step(trainer):
  """Two programs, shared by the tests below."""
  return jax.jit(trainer.train_step, static_argnames='adversarial')


def test_gradients_are_those_of_the_loss_written_out(trainer, state):
  images = from_uint8(make_batch()['image'])
  noise = jax.random.normal(jax.random.key(1), (4, 8, 8, 2))
  gradients = jax.jit(trainer._gradients, static_argnames='adversarial')
  found, (made, metrics) = gradients(state, images, noise, adversarial=True)

  def parts(params):
    made, q = trainer.module.apply({'params': params}, images, noise)
    pixels = jnp.abs(made - images).sum((1, 2, 3)) + 0.7 * 768 * trainer.perceptual(images, made)
    kl = 0.5 * (q.mean**2 + jnp.exp(q.logvar) - 1 - q.logvar).sum((1, 2, 3))
    judged = trainer.discriminator.apply({'params': state.discriminator}, made)
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

  expected, weight, kl = written_out(state.params)
  np.testing.assert_allclose(metrics['adaptive_weight'], weight, rtol=1e-3)
  assert weight > 1
  largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(expected))
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest, err_msg=str(path))
  np.testing.assert_allclose(metrics['kl'], kl, rtol=1e-5)
  assert made.shape == images.shape


def test_the_discriminator_changes_only_when_it_is_on(step, state):
  for adversarial in (False, True):
    after, metrics = step(state, make_batch(), adversarial=adversarial)
    same = jax.tree.map(np.array_equal, after.discriminator, state.discriminator)
    assert all(jax.tree.leaves(same)) != adversarial
    assert ('discriminator_loss' in metrics) == adversarial
    if adversarial:  # Untrained logits are near 0: both hinges near 1.
      np.testing.assert_allclose(metrics['discriminator_loss'], 1, atol=0.05)
    assert int(after.step) == 1 and int(after.skipped) == 0


def test_bad_steps_change_nothing(step, state):
  broken = state.replace(params=jax.tree.map(lambda p: p * np.nan, state.params))
  after, metrics = step(broken, make_batch(), adversarial=True)
  assert int(metrics['skipped']) == 1 and int(after.step) == 1
  after = after.replace(step=broken.step, skipped=broken.skipped)
  jax.tree.map(np.testing.assert_array_equal, after, broken)


def test_finite_losses_with_non_finite_gradients_change_nothing(step, state):
  """In the perceptual loss of white images; then in the discriminator, whose squares overflow."""
  kernel = state.discriminator['conv_out']['kernel']
  large = {**state.discriminator, 'conv_out': {'kernel': kernel * 1e30, 'bias': jnp.zeros(1)}}
  white = {**make_batch(), 'image': np.full((4, *SHAPE), 255, np.uint8)}
  for before, batch in ((state, white), (state.replace(discriminator=large), make_batch())):
    after, metrics = step(before, batch, adversarial=True)
    assert all(np.isfinite(metrics[name]) for name in ('loss', 'discriminator_loss'))
    assert np.isfinite(metrics['grad_norm']) == (batch is not white)
    assert int(after.skipped) == 1
    after = after.replace(step=before.step, skipped=before.skipped)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_the_average_reaches_the_configured_decay(step, state):
  """0.999, as configs/vae.py has it."""
  late = state.replace(step=jnp.int32(10**6), ema_params=jax.tree.map(jnp.zeros_like, state.params))
  after, _ = step(late, make_batch(), adversarial=False)
  for average, p in zip(jax.tree.leaves(after.ema_params), jax.tree.leaves(after.params)):
    np.testing.assert_allclose(average, 1e-3 * p, rtol=1e-3)


def test_it_learns_to_reconstruct(trainer, state, step):
  """Without the adversary: the error on the training batch falls by half in 60 steps."""
  errors = []
  for _ in range(60):
    state, metrics = step(state, make_batch(), adversarial=False)
    errors.append(float(metrics['reconstruction']))
  assert errors[-1] < errors[0] / 2
  batch = {**make_batch(), 'index': np.asarray([0, 1, 2, -1])}
  sums = jax.jit(trainer.evaluation_step)(state.params, batch)
  alone = [
    trainer.evaluation_step(
      state.params, {'image': batch['image'][i : i + 1], 'index': np.zeros(1)}
    )
    for i in range(3)
  ]
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


@pytest.mark.parametrize('name', ['', 'discriminator_'])
def test_a_step_to_parameters_that_are_not_finite_changes_nothing(trainer, state, name):
  """Of the autoencoder, or of the discriminator alone; all gradients are finite."""
  optimizer = optax.sgd(jnp.inf)
  diverging = dataclasses.replace(trainer, **{f'{name}optimizer': optimizer})
  before = state.replace(**{f'{name}opt_state': optimizer.init({})})
  step = jax.jit(diverging.train_step, static_argnames='adversarial')
  after, metrics = step(before, make_batch(), adversarial=True)
  assert np.isfinite(metrics['grad_norm']) and int(after.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, after.discriminator, before.discriminator)
