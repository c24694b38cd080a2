"""PatchGAN discriminator (Isola et al. 2017, arXiv:1611.07004, Section 6.1.2), with GroupNorm.

Every output judges one overlapping patch. BatchNorm of the original would tie the examples of a batch
to each other, and to how a batch is cut over devices.
"""

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.layers import Conv
from diffusion_jax.types import Array

NUM_GROUPS = 8
SLOPE = 0.2
normal = nn.initializers.normal(0.02)


def group_norm(dtype, name: str) -> nn.GroupNorm:
  """8 groups; statistics in float32."""
  return nn.GroupNorm(NUM_GROUPS, dtype=dtype, name=name)


class PatchDiscriminator(nn.Module):
  """Images (B, H, W, C) in [-1, 1] -> logits (B, h, w, 1) float32, higher for real ones."""

  channels: int = 64
  num_layers: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: Array) -> Array:
    def conv(h, channels, stride, name):
      return Conv(
        channels, (4, 4), stride, padding=1, dtype=self.dtype, kernel_init=normal, name=name
      )(h)

    h = nn.leaky_relu(conv(images, self.channels, 2, 'conv_in'), SLOPE)
    for layer in range(1, self.num_layers + 1):
      stride = 2 if layer < self.num_layers else 1
      h = conv(h, self.channels * min(2**layer, 8), stride, f'conv_{layer}')
      h = group_norm(self.dtype, f'norm_{layer}')(h)
      h = nn.leaky_relu(h, SLOPE)
    return conv(h, 1, 1, 'conv_out').astype(jnp.float32)
