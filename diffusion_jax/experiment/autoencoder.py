"""The autoencoder's trainer from a config."""

import dataclasses

import jax.numpy as jnp

from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.pretrained import lpips
from diffusion_jax.training.autoencoder import AutoencoderTrainer
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.types import PyTree


def module_of(config: Config, dtype: jnp.dtype) -> AutoencoderKL:
  """Raises: InputError for sizes that do not fit each other."""
  try:
    return AutoencoderKL(**config.vae.sizes(), image_channels=config.data.channels, dtype=dtype)
  except ValueError as error:
    raise InputError(f'config.vae.{error}') from error


def make_autoencoder_trainer(config: Config, dtype: jnp.dtype) -> AutoencoderTrainer:
  """Without the perceptual loss, whose weights only training needs: perceptual_params has them.

  Raises: InputError for sizes that do not fit each other.
  """
  vae = config.vae
  settings = {**dataclasses.asdict(config.optimizer), 'total_steps': config.train.num_steps}
  return AutoencoderTrainer(
    module=module_of(config, dtype),
    discriminator=PatchDiscriminator(vae.discriminator_channels, vae.discriminator_layers, dtype),
    optimizer=make_optimizer(**settings),
    discriminator_optimizer=make_optimizer(**settings, first_step=vae.discriminator_start),
    ema_decay=config.train.ema_decay,
    flip=config.data.flip,
    seed=config.seed,
    kl_weight=vae.kl_weight,
    perceptual_weight=vae.perceptual_weight,
    discriminator_weight=vae.discriminator_weight,
  )


def perceptual_params(config: Config) -> PyTree | None:
  """The user's weights of LPIPS, or None without a perceptual loss.

  Raises: InputError that says which files are needed.
  """
  if not config.vae.perceptual_weight:
    return None
  return lpips.load(config.vae.perceptual_weights, allow_pickle=config.allow_pickle)
