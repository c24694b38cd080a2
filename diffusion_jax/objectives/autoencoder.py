"""A KL autoencoder with a perceptual and an adversarial loss.

Esser et al. 2021 (arXiv:2012.09841, Eq. 5-7) and Rombach et al. 2022 (arXiv:2112.10752, Eq. 25). Errors
are sums over the pixels, the KL a sum over the latents of one image, both averaged over the batch:
kl_weight 1e-6 belongs to that reduction. The adversarial loss is scaled so that its gradient at the
decoder's last layer is discriminator_weight times that of the reconstruction.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.config.options import (
  BY_COMMAND,
  COUNT,
  NOT_NEGATIVE,
  Check,
  option,
  require_options,
)
from diffusion_jax.diffusion.pixels import from_uint8, psnr, to_uint8
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.perceptual import LPIPS
from diffusion_jax.models.vae import AutoencoderKL, decoder_head
from diffusion_jax.objectives.base import Context, x0_of
from diffusion_jax.pretrained import lpips
from diffusion_jax.randomness import fold_in_each, normal_each, purpose_key
from diffusion_jax.training.objective import Batch, Draws, Metrics, Objective, Parts
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, PyTree

MAX_ADAPTIVE_WEIGHT = 1e4
ALONE, ADVERSARIAL = 'without discriminator', 'adversarial'  # The phases.
Distance = Callable[[Array, Array], Array]  # (images, images) -> (B,)


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """Trains the autoencoder of config.vae: reconstruction, LPIPS, KL, and later a discriminator."""

  kl_weight: float = option(
    1e-6,
    'Weight of the KL term, a sum over the latents, against sums over the pixels.',
    NOT_NEGATIVE,
  )
  perceptual_weight: float = option(1.0, 'Weight of LPIPS; 0 leaves it out.', NOT_NEGATIVE)
  perceptual_weights: str = option(
    '', 'Folder or file with the weights of VGG16 and LPIPS.', change=BY_COMMAND
  )
  discriminator_start: int = option(
    50_000, 'Steps before the discriminator joins the training.', NOT_NEGATIVE
  )
  discriminator_weight: float = option(0.5, 'Weight of the adversarial loss.', NOT_NEGATIVE)
  discriminator_channels: int = option(
    PatchDiscriminator.channels,
    "Channels of the discriminator's first layer.",
    Check(lambda n: n > 0 and n % 8 == 0, 'positive multiples of 8'),
  )
  discriminator_layers: int = option(
    PatchDiscriminator.num_layers, 'Layers of the discriminator that halve the image.', COUNT
  )

  def __post_init__(self):
    require_options(self)

  def build(self, context: Context) -> Objective:
    """The objective of a run: an autoencoder, its discriminator, and one average of the autoencoder.

    Raises: ValueError for more layers than the images allow.
    """
    model = context.make_autoencoder()
    # Each layer and conv_in but the last halve the image; two more convolutions take a pixel each.
    most = int(math.log2(max(context.image_shape[0], 6) / 3))
    if self.discriminator_start < context.num_steps and self.discriminator_layers > most:
      raise ValueError(
        f'discriminator_layers: got {self.discriminator_layers}, allowed 1..{most} for images of '
        f'{context.image_shape[0]} px: of more, no patch is left to judge'
      )
    judge = PatchDiscriminator(
      self.discriminator_channels, self.discriminator_layers, context.dtype
    )
    height, width, _ = context.image_shape
    latent_shape = (height // model.factor, width // model.factor, model.embed_channels)

    def init() -> Parts:
      images, key = jnp.zeros((1, *context.image_shape)), purpose_key(context.seed, 'init')
      latent = jax.eval_shape(lambda: model.init_with_output(key, images, method='encode')[0].mean)
      params = model.init(key, images, jnp.zeros(latent.shape))['params']
      key = purpose_key(context.seed, 'init_discriminator')
      return {'model': params, 'discriminator': judge.init(key, images)['params']}

    def frozen() -> PyTree:
      if not self.perceptual_weight:
        return {}
      return lpips.load(self.perceptual_weights, allow_pickle=context.allow_pickle)

    def gradients(state: TrainState, frozen, batch: Batch, draws: Draws, phase: str):
      images = x0_of(batch, None, draws.keys, flip=context.flip)
      noise = normal_each(fold_in_each(draws.keys, 1), latent_shape)
      distance = (lambda a, b: LPIPS().apply({'params': frozen}, a, b)) if frozen else None
      adversarial = phase == ADVERSARIAL
      return self.gradients(
        model, judge, state.params, images, noise, distance, adversarial=adversarial
      )

    def forward(parts, images, noise):
      return model.apply({'params': parts['model']}, images, noise)

    def reconstruct(parts, images):
      params = {'params': parts['model']}
      posterior = model.apply(params, from_uint8(images), method='encode')
      return to_uint8(model.apply(params, posterior.mean, method='decode'))

    return Objective(
      init=init,
      gradients=gradients,
      optimizers={
        'model': context.make_optimizer(),
        'discriminator': context.make_optimizer(first_step=self.discriminator_start),
      },
      forward=forward,
      forward_inputs=lambda size: (
        jax.ShapeDtypeStruct((size, *context.image_shape), jnp.float32),
        jax.ShapeDtypeStruct((size, *latent_shape), jnp.float32),
      ),
      holdout=lambda parts, frozen, scaling, batch: holdout_sums(model, parts['model'], batch),
      holdout_metrics=('psnr', 'reconstruction', 'kl'),
      averages={'ema': context.ema()},
      frozen=frozen,
      phase=lambda step: ADVERSARIAL if step > self.discriminator_start else ALONE,
      whole_batch=(ADVERSARIAL,),
      reconstruct=reconstruct,
    )

  def gradients(
    self,
    model: AutoencoderKL,
    judge: PatchDiscriminator,
    parts: Parts,
    images: Array,
    noise: Array,
    distance: Distance | None,
    *,
    adversarial: bool,
  ) -> tuple[Parts, Metrics]:
    """Gradients of the whole loss by one pass back: the two losses meet in the decoded image.

    images (B,H,W,C) in [-1, 1], noise (B,h,w,c); distance: LPIPS. Returns: gradients, and metrics
    loss, reconstruction, kl, psnr, with adversarial discriminator_loss and adaptive_weight.
    """

    def to_features(params):
      return model.apply({'params': params}, images, noise, method='features')

    (features, posterior), back = jax.vjp(to_features, parts['model'])
    last = parts['model']['decoder']['conv_out']
    made, back_to_last = jax.vjp(functools.partial(decoder_head, model), last, features)
    loss = functools.partial(self.reconstruction, distance)
    reconstruction, to_image = jax.value_and_grad(loss)(made, images)
    kl = jnp.mean(posterior.kl())
    metrics = {
      'loss': reconstruction + self.kl_weight * kl,
      'reconstruction': reconstruction,
      'kl': kl,
      'psnr': jnp.mean(psnr(made - images)),
    }
    to_last, to_features = back_to_last(to_image)
    grads = {}
    if adversarial:

      def judged(params, images):
        return judge.apply({'params': params}, images)

      fooling = jax.grad(lambda made: -jnp.mean(judged(parts['discriminator'], made)))(made)
      fooling_last, fooling_features = back_to_last(fooling)
      weight = self.adaptive_weight(to_last, fooling_last)
      add = lambda a, b: a + weight * b  # noqa: E731
      to_last = jax.tree.map(add, to_last, fooling_last)
      to_features = add(to_features, fooling_features)
      metrics['adaptive_weight'] = weight
      hinge = functools.partial(hinge_loss, judged, images, jax.lax.stop_gradient(made))
      metrics['discriminator_loss'], grads['discriminator'] = jax.value_and_grad(hinge)(
        parts['discriminator']
      )
    to_posterior = jax.grad(lambda q: self.kl_weight * jnp.mean(q.kl()))(posterior)
    (to_model,) = back((to_features, to_posterior))
    grads['model'] = {**to_model, 'decoder': {**to_model['decoder'], 'conv_out': to_last}}
    return grads, metrics

  def reconstruction(self, distance: Distance | None, made: Array, images: Array) -> Array:
    """Sum of |error| (+ weighted LPIPS at every value, as published) over an image, mean over the batch."""
    error = jnp.sum(jnp.abs(made - images), axis=(1, 2, 3))
    if distance is not None:
      values = images.size / len(images)
      error = error + self.perceptual_weight * values * distance(images, made)
    return jnp.mean(error)

  def adaptive_weight(self, to_last: PyTree, fooling_last: PyTree) -> Array:
    """|d reconstruction / d last layer| / (|d adversarial / d last layer| + 1e-4), times the weight."""
    norms = [jnp.linalg.norm(g['kernel'].reshape(-1)) for g in (to_last, fooling_last)]
    weight = jnp.clip(norms[0] / (norms[1] + 1e-4), 0, MAX_ADAPTIVE_WEIGHT)
    return self.discriminator_weight * weight


def hinge_loss(judged: Callable, images: Array, made: Array, params: PyTree) -> Array:
  """The discriminator's loss (Lim & Ye 2017, arXiv:1705.02894): ()."""
  real, fake = judged(params, images), judged(params, made)
  return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def holdout_sums(model: AutoencoderKL, params: PyTree, batch: Batch) -> Metrics:
  """Sums over a batch of held-out images (index -1: padding) of PSNR, |error|, KL; and their count.

  Reconstructions are of the posterior's mean, rounded to no levels: what decoding gives.
  """
  images = from_uint8(batch['image'])
  posterior = model.apply({'params': params}, images, method='encode')
  made = model.apply({'params': params}, posterior.mean, method='decode')
  valid = (batch['index'] >= 0).astype(jnp.float32)
  error = jnp.clip(made, -1, 1) - images
  return {
    'psnr': jnp.sum(valid * psnr(error)),
    'reconstruction': jnp.sum(valid * jnp.mean(jnp.abs(error), axis=(1, 2, 3))),
    'kl': jnp.sum(valid * posterior.kl()),
    'count': jnp.sum(valid),
  }
