"""Builds the autoencoder's module from a config."""

import jax.numpy as jnp

from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.models.vae import AutoencoderKL


def module_of(config: Config, dtype: jnp.dtype) -> AutoencoderKL:
  """Builds the module. Raises: InputError for sizes that do not fit each other."""
  try:
    return AutoencoderKL(**config.vae.sizes, image_channels=config.data.channels, dtype=dtype)
  except ValueError as error:
    raise InputError(f'config.vae.{error}') from error
