"""One step of training a KL autoencoder with a perceptual and an adversarial loss.

Esser et al. 2021 (arXiv:2012.09841, Eq. 5-7) and Rombach et al. 2022 (arXiv:2112.10752, Eq. 25). Errors
are sums over the pixels, the KL a sum over the latents of one image, both averaged over the batch:
kl_weight 1e-6 belongs to that reduction. The adversarial loss is scaled so that its gradient at the
decoder's last layer is discriminator_weight times that of the reconstruction.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.diffusion.pixels import from_uint8, psnr
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.vae import AutoencoderKL, decoder_head
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from diffusion_jax.training.state import ema_decay_at
from diffusion_jax.types import Array, PyTree

MAX_ADAPTIVE_WEIGHT = 1e4
Batch = dict[str, Array]


class AutoencoderState(flax.struct.PyTreeNode):
  """As TrainState, with the discriminator and its optimizer."""

  step: Array
  params: PyTree
  ema_params: PyTree
  opt_state: PyTree
  discriminator: PyTree
  discriminator_opt_state: PyTree
  skipped: Array


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderTrainer:
  """perceptual: (images, images) -> (B,), or None for perceptual_weight 0."""

  module: AutoencoderKL
  discriminator: PatchDiscriminator
  optimizer: optax.GradientTransformation
  discriminator_optimizer: optax.GradientTransformation
  ema_decay: float
  flip: bool
  seed: int
  kl_weight: float
  perceptual_weight: float
  discriminator_weight: float
  perceptual: Callable[[Array, Array], Array] | None = None

  def create_state(self, image_shape: tuple[int, int, int]) -> AutoencoderState:
    """Step 0, a function of the seed."""
    images = jnp.zeros((1, *image_shape))
    key = purpose_key(self.seed, 'init')
    latent = jax.eval_shape(
      lambda: self.module.init_with_output(key, images, method='encode')[0].mean
    )
    params = self.module.init(key, images, jnp.zeros(latent.shape))['params']
    key = purpose_key(self.seed, 'init_discriminator')
    discriminator = self.discriminator.init(key, images)['params']
    return AutoencoderState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      ema_params=jax.tree.map(jnp.copy, params),
      opt_state=self.optimizer.init(params),
      discriminator=discriminator,
      discriminator_opt_state=self.discriminator_optimizer.init(discriminator),
      skipped=jnp.zeros((), jnp.int32),
    )

  def train_step(
    self, state: AutoencoderState, batch: Batch, *, adversarial: bool
  ) -> tuple[AutoencoderState, dict[str, Array]]:
    """Updates the autoencoder and, if adversarial, then the discriminator (static: two programs).

    A non-finite loss, gradient or result leaves all as it was.
    Returns: the next state; () float32 loss, reconstruction, kl, grad_norm, psnr and with adversarial
    discriminator_loss and adaptive_weight; () int32 skipped.
    """
    key = jax.random.fold_in(purpose_key(self.seed, 'train'), state.step)
    keys = example_keys(key, jnp.arange(len(batch['label']), dtype=jnp.uint32))  # (B,)
    images = from_uint8(batch['image'])
    if self.flip:
      flipped = jax.vmap(jax.random.bernoulli)(fold_in_each(keys, 0))  # (B,)
      images = jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)
    noise = self._noise(images, fold_in_each(keys, 1))

    grads, (made, metrics) = self._gradients(state, images, noise, adversarial)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay_at(state.step, self.ema_decay)
    new = state.replace(
      params=params,
      ema_params=jax.tree.map(lambda e, p: e * decay + p * (1 - decay), state.ema_params, params),
      opt_state=opt_state,
    )
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(grad_norm)
    finite &= jnp.isfinite(optax.tree.norm(params))
    if adversarial:
      new, judged, norm = self._update_discriminator(new, images, jax.lax.stop_gradient(made))
      finite &= jnp.isfinite(judged) & jnp.isfinite(norm)
      finite &= jnp.isfinite(optax.tree.norm(new.discriminator))
      metrics = {**metrics, 'discriminator_loss': judged}
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    skipped = jnp.where(finite, 0, state.skipped + 1)
    new = new.replace(step=state.step + 1, skipped=skipped)
    return new, {**metrics, 'grad_norm': grad_norm, 'skipped': skipped}

  def evaluation_step(self, params: PyTree, batch: Batch) -> dict[str, Array]:
    """Sums over a batch of held-out images (index -1: padding) of squared error, |error|, KL; and count.

    Reconstructions are of the posterior's mean, rounded to no levels: what decoding gives.
    """
    images = from_uint8(batch['image'])
    posterior = self.module.apply({'params': params}, images, method='encode')
    made = self.module.apply({'params': params}, posterior.mean, method='decode')
    valid = (batch['index'] >= 0).astype(jnp.float32)
    error = jnp.clip(made, -1, 1) - images
    return {
      'psnr': jnp.sum(valid * psnr(error)),
      'reconstruction': jnp.sum(valid * jnp.mean(jnp.abs(error), axis=(1, 2, 3))),
      'kl': jnp.sum(valid * posterior.kl()),
      'count': jnp.sum(valid),
    }

  def _noise(self, images: Array, keys: Array) -> Array:
    factor = self.module.factor
    height, width = images.shape[1] // factor, images.shape[2] // factor
    return normal_each(keys, (height, width, self.module.embed_channels))

  def _gradients(self, state: AutoencoderState, images: Array, noise: Array, adversarial: bool):
    """Of the whole loss, by one pass back: the two losses meet in the decoded image.

    Returns: gradients, (decoded images, metrics).
    """

    def to_features(params):
      return self.module.apply({'params': params}, images, noise, method='features')

    (features, posterior), back = jax.vjp(to_features, state.params)
    last = state.params['decoder']['conv_out']
    made, back_to_last = jax.vjp(functools.partial(decoder_head, self.module), last, features)
    reconstruction, to_image = jax.value_and_grad(self._reconstruction)(made, images)
    kl = jnp.mean(posterior.kl())
    metrics = {
      'loss': reconstruction + self.kl_weight * kl,
      'reconstruction': reconstruction,
      'kl': kl,
      'psnr': jnp.mean(psnr(made - images)),
    }
    to_last, to_features = back_to_last(to_image)
    if adversarial:
      fooling = jax.grad(lambda made: -jnp.mean(self._judge(state.discriminator, made)))(made)
      fooling_last, fooling_features = back_to_last(fooling)
      weight = self._adaptive_weight(to_last, fooling_last)
      add = lambda a, b: a + weight * b  # noqa: E731
      to_last = jax.tree.map(add, to_last, fooling_last)
      to_features = add(to_features, fooling_features)
      metrics['adaptive_weight'] = weight
    to_posterior = jax.grad(lambda q: self.kl_weight * jnp.mean(q.kl()))(posterior)
    (grads,) = back((to_features, to_posterior))
    grads = {**grads, 'decoder': {**grads['decoder'], 'conv_out': to_last}}
    return grads, (made, metrics)

  def _reconstruction(self, made: Array, images: Array) -> Array:
    """Sum of |error| (+ weighted LPIPS at every value, as published) over an image, mean over the batch."""
    error = jnp.sum(jnp.abs(made - images), axis=(1, 2, 3))
    if self.perceptual is not None:
      values = images.size / len(images)
      error = error + self.perceptual_weight * values * self.perceptual(images, made)
    return jnp.mean(error)

  def _judge(self, discriminator: PyTree, images: Array) -> Array:
    return self.discriminator.apply({'params': discriminator}, images)

  def _adaptive_weight(self, to_last: PyTree, fooling_last: PyTree) -> Array:
    """|d reconstruction / d last layer| / (|d adversarial / d last layer| + 1e-4), times the weight."""
    norms = [jnp.linalg.norm(g['kernel'].reshape(-1)) for g in (to_last, fooling_last)]
    weight = jnp.clip(norms[0] / (norms[1] + 1e-4), 0, MAX_ADAPTIVE_WEIGHT)
    return self.discriminator_weight * weight

  def _update_discriminator(self, state: AutoencoderState, images: Array, made: Array):
    """Hinge loss (Lim & Ye 2017, arXiv:1705.02894). Returns: state, loss, gradient norm."""

    def hinge(discriminator):
      real, fake = self._judge(discriminator, images), self._judge(discriminator, made)
      return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))

    loss, grads = jax.value_and_grad(hinge)(state.discriminator)
    updates, opt_state = self.discriminator_optimizer.update(
      grads, state.discriminator_opt_state, state.discriminator
    )
    discriminator = optax.apply_updates(state.discriminator, updates)
    state = state.replace(discriminator=discriminator, discriminator_opt_state=opt_state)
    return state, loss, optax.tree.norm(grads)
