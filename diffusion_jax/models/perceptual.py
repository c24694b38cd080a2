"""LPIPS with VGG16 (Zhang et al. 2018, arXiv:1801.03924, Eq. 1), version 0.1 of the published weights.

Squared differences of VGG features, each normalised over its channels, weighted by a learned
non-negative vector, averaged over positions and summed over five layers. The weights are frozen.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation for images in [-1, 1], as the published weights expect them.
SHIFT = np.asarray([-0.030, -0.088, -0.188], np.float32)
SCALE = np.asarray([0.458, 0.448, 0.450], np.float32)


class LPIPS(nn.Module):
  """Two batches of images (B, H, W, 3) in [-1, 1] -> distances (B,) float32. Sides of 16 or more."""

  @nn.compact
  def __call__(self, a: Array, b: Array) -> Array:
    h = jnp.concatenate([a, b])
    h = (h - SHIFT) / SCALE
    distance = jnp.zeros(len(a), jnp.float32)
    for slice_number, widths in enumerate(CHANNELS):
      if slice_number:
        h = nn.max_pool(h, (2, 2), (2, 2))  # (2B, H/2, W/2, C)
      for number, width in enumerate(widths):
        h = nn.relu(nn.Conv(width, (3, 3), padding=1, name=f'conv_{slice_number}_{number}')(h))
      length = jnp.sqrt(jnp.sum(jnp.square(h), axis=-1, keepdims=True) + 1e-20)
      features_a, features_b = jnp.split(h / (length + 1e-10), 2)
      squared = jnp.square(features_a - features_b)
      weighted = nn.Dense(1, use_bias=False, name=f'lin_{slice_number}')(squared)  # (B, h, w, 1)
      distance += jnp.mean(weighted, axis=(1, 2, 3))
    return distance
