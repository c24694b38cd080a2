"""The systems that the report measures, built from the package's parts, at full size and tiny.

Full sizes are those of the published DiTs on 32x32x4 latents, of configs/ddpm_cfg.py and of
configs/vae.py; a config cannot be read here, because that needs ml-collections.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from accelerator import arrays
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import guidance_of
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import ddim
from diffusion_jax.diffusion.schedules import cosine
from diffusion_jax.diffusion.spacings.trailing import Trailing
from diffusion_jax.models import dit, unet
from diffusion_jax.models.latents import Scaling
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.objectives.autoencoder import ADVERSARIAL, ALONE, Autoencoder
from diffusion_jax.objectives.base import Context
from diffusion_jax.objectives.denoising import Denoising
from diffusion_jax.training.objective import Objective
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import create_state
from diffusion_jax.training.step import make_train_step
from diffusion_jax.types import Array, PyTree

SEED = arrays.SEED
UNET = dict(
  channels=128,
  channel_mult=(1, 2, 2, 4),
  num_res_blocks=2,
  attention_resolutions=(32, 16),
  num_heads=4,
  head_channels=64,
  dropout=0.1,
  scale_shift_norm=True,
  resample='conv',
  frequency_shift=0,
  norm_epsilon=1e-5,
)
VAE = dict(channels=128, channel_mult=(1, 2, 4), num_res_blocks=2, z_channels=3, embed_channels=3)
DIT_SIZES = {'s': (384, 12, 6), 'b': (768, 12, 12), 'l': (1024, 24, 16), 'xl': (1152, 28, 16)}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """dit: name -> (hidden_size, depth, num_heads). Batch sizes are halved until they fit."""

  dit: Mapping[str, tuple[int, int, int]]
  latent_shape: tuple[int, int, int]
  unet: Mapping[str, Any]
  vae: Mapping[str, Any]
  discriminator: tuple[int, int]  # Channels and layers.
  image_size: int
  dit_batch: int
  unet_batch: int
  vae_batch: int
  sample_batch: int
  sample_steps: int
  repeats: int
  steps: int  # A repeat.
  matmul: int  # Side of the matrices.
  # Sizes of the checks that also run in float64 on the CPU.
  check_dit: str
  check_batch: int
  check_unet: Mapping[str, Any]
  check_image_size: int
  attention: tuple[int, int, int, int]  # Batch, tokens, heads, channels a head.
  photos: tuple[int, int]  # Images for the FID network, and their side.


# Small: XLA has no fast convolutions in float64 on a CPU.
CHECK_UNET = dict(UNET, channels=64, channel_mult=(1, 2), attention_resolutions=(8,))
FULL = Sizes(
  dit=DIT_SIZES,
  latent_shape=(32, 32, 4),
  unet=UNET,
  vae=VAE,
  discriminator=(64, 3),
  image_size=128,
  dit_batch=256,
  unet_batch=256,
  vae_batch=32,
  sample_batch=64,
  sample_steps=50,
  repeats=5,
  steps=4,
  matmul=8192,
  check_dit='b',
  check_batch=4,
  check_unet=CHECK_UNET,
  check_image_size=16,
  attention=(8, 256, 16, 72),
  photos=(4, 128),
)
SMALL_UNET = dict(
  UNET,
  channels=32,
  channel_mult=(1, 1),
  num_res_blocks=1,
  attention_resolutions=(4,),
  head_channels=16,
)
TINY = Sizes(
  dit={'s': (32, 2, 2)},
  latent_shape=(8, 8, 4),
  unet=SMALL_UNET,
  vae=dict(VAE, channels=32, channel_mult=(1, 1), num_res_blocks=1),
  discriminator=(8, 1),
  image_size=8,
  dit_batch=4,
  unet_batch=4,
  vae_batch=2,
  sample_batch=2,
  sample_steps=2,
  repeats=2,
  steps=1,
  matmul=64,
  check_dit='s',
  check_batch=2,
  check_unet=dict(SMALL_UNET, channel_mult=(1,), attention_resolutions=(8,)),
  check_image_size=8,
  attention=(1, 16, 2, 8),
  photos=(1, 16),
)
SIZES = {'full': FULL, 'tiny': TINY}
NUM_CLASSES = {'dit': 1000, 'unet': 100}
PROCESS = Process(
  cosine.Cosine().build(),
  'v',
)


def make_dit(sizes: Sizes, name: str, attention: str, dtype: jnp.dtype) -> nn.Module:
  """The published DiT of this size, predicting as many channels as it sees."""
  hidden_size, depth, num_heads = sizes.dit[name]
  return dit.DiT(
    patch_size=2,
    hidden_size=hidden_size,
    depth=depth,
    num_heads=num_heads,
    attention=attention,
    out_channels=sizes.latent_shape[-1],
    num_classes=NUM_CLASSES['dit'],
    dtype=dtype,
  )


def make_unet(
  options: Mapping[str, Any], attention: str, dtype: jnp.dtype, *, remat: bool
) -> nn.Module:
  """A UNet on RGB images."""
  classes = NUM_CLASSES['unet']
  return unet.UNet(
    **options,
    attention=attention,
    remat='blocks' if remat else 'none',
    out_channels=3,
    num_classes=classes,
    dtype=dtype,
  )


def make_vae(sizes: Sizes, dtype: jnp.dtype) -> AutoencoderKL:
  """The autoencoder on RGB images."""
  return AutoencoderKL(**sizes.vae, image_channels=3, dtype=dtype)


def optimizer(first_step: int = 0):
  """AdamW as configs/base.py has it, without the decay of the learning rate."""
  return make_optimizer(
    learning_rate=1e-4,
    warmup_steps=100,
    decay='constant',
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=1.0,
    total_steps=100_000,
    first_step=first_step,
  )


def make_objective(module: nn.Module, shape: tuple[int, int, int], num_classes: int) -> Objective:
  """The loss with a tenth of the labels hidden, the average, no mirroring."""
  context = Context(
    image_shape=shape,
    x0_shape=shape,
    process=PROCESS,
    num_classes=num_classes,
    make_model=lambda: module,
    make_optimizer=optimizer,
    seed=SEED,
  )
  return Denoising().build(context)


def abstract_params(module: nn.Module, shape: tuple[int, int, int]) -> PyTree:
  """Shapes of the parameters of a backbone for x0 of this shape."""
  inputs = (jnp.zeros((1, *shape)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)})
  return jax.eval_shape(module.init, jax.random.key(SEED), *inputs)['params']


def backbone_params(module: nn.Module, shape: tuple[int, int, int]) -> PyTree:
  """arrays.random_params of a backbone, on the device."""
  return jax.tree.map(jnp.asarray, arrays.random_params(abstract_params(module, shape)))


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
  """init() -> state on the device and step(state, batch) -> (state, metrics), to be compiled.

  make_batch: size -> random examples. flops: of one example, forward and backward.
  """

  init: Callable[[], PyTree]
  step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
  make_batch: Callable[[int], PyTree]
  batch_size: int
  flops: int


def make_generator(
  shape: tuple[int, int, int], num_classes: int, num_steps: int, cfg_scale: float
) -> Generator:
  """DDIM without noise, trailing steps, nothing clipped."""
  return Generator(
    PROCESS,
    ddim.DDIM(schedule=PROCESS.schedule, eta=0.0),
    Trailing()(PROCESS.schedule, num_steps),
    shape,
    seed=SEED,
    null_label=num_classes,
    guidance=guidance_of(cfg_scale),
    clip_x0=False,
  )


def diffusion_training(
  module: nn.Module, shape: tuple[int, int, int], kind: str, batch_size: int, forward_flops: int
) -> Training:
  """kind 'dit' trains on posterior parameters of latents, 'unet' on images."""
  num_classes = NUM_CLASSES[kind]
  objective = make_objective(module, shape, num_classes)
  train_step = make_train_step(objective, SEED)
  channels = shape[-1]
  scaling = Scaling(jnp.zeros(channels), jnp.ones(())) if kind == 'dit' else None

  def make_batch(size: int) -> dict[str, Array]:
    label = jnp.arange(size, dtype=jnp.int32) % num_classes
    if kind == 'dit':
      return {
        'posterior': arrays.normal(0, size, *shape[:2], 2 * channels).astype(jnp.float16),
        'label': label,
      }
    return {'image': arrays.random_images(size, shape), 'label': label}

  def init() -> PyTree:
    parts = {'model': backbone_params(module, shape)}
    return create_state(parts, objective.optimizers, scaling=scaling)

  return Training(
    init,
    lambda state, batch: train_step(state, batch, {}),
    make_batch,
    batch_size,
    3 * forward_flops,
  )


def autoencoder_training(
  sizes: Sizes, dtype: jnp.dtype, adversarial: bool, forward: int, judge: int
) -> Training:
  """KL-f4 without LPIPS, whose weights cannot be had here; forward, judge: operations an image."""
  channels, layers = sizes.discriminator
  options = Autoencoder(
    perceptual_weight=0.0, discriminator_channels=channels, discriminator_layers=layers
  )
  shape = (sizes.image_size, sizes.image_size, 3)
  context = Context(
    image_shape=shape,
    x0_shape=shape,
    ema_decay=0.999,
    flip=True,
    make_autoencoder=lambda: make_vae(sizes, dtype),
    make_optimizer=optimizer,
    dtype=dtype,
    seed=SEED,
  )
  objective = options.build(context)
  train_step = make_train_step(objective, SEED, ADVERSARIAL if adversarial else ALONE)

  def make_batch(size: int) -> dict[str, Array]:
    return {'image': arrays.random_images(size, shape), 'label': jnp.zeros(size, jnp.int32)}

  def init() -> PyTree:
    abstract = jax.eval_shape(objective.init)
    parts = {
      name: jax.tree.map(jnp.asarray, arrays.random_params(part)) for name, part in abstract.items()
    }
    return create_state(parts, objective.optimizers)

  # The discriminator judges made images and passes the gradient on (2), then learns from two (2 x 3).
  return Training(
    init,
    lambda state, batch: train_step(state, batch, {}),
    make_batch,
    sizes.vae_batch,
    3 * forward + (8 * judge if adversarial else 0),
  )
