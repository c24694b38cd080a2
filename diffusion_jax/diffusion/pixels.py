"""Between stored uint8 images and the network's [-1, 1], and how far two images are apart."""

import jax.numpy as jnp

from diffusion_jax.types import Array


def from_uint8(images: Array) -> Array:
  """0..255 -> [-1, 1] float32."""
  return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(x: Array) -> Array:
  """floor(127.5 x + 128) clipped to 0..255: each level has the same width."""
  return jnp.clip(jnp.floor(127.5 * x + 128), 0, 255).astype(jnp.uint8)


def psnr(error: Array) -> Array:
  """Peak signal-to-noise ratio in dB of errors (B, H, W, C) of images in [-1, 1]: (B,)."""
  mean_square = jnp.mean(jnp.square(error), axis=(1, 2, 3))
  return 10 * jnp.log10(4 / jnp.maximum(mean_square, 1e-10))
