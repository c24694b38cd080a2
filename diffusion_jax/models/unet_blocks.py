"""Blocks of the UNets of DDPM (Ho et al. 2020) and ADM (Dhariwal & Nichol 2021).

Both are pre-activation residual blocks with 32 norm groups. DDPM adds a projection of the condition
between the convolutions and changes resolution by a convolution of its own; ADM turns the condition
into scale and shift of the second norm and may change resolution inside a residual block.
"""

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.attention import attend, require_cudnn
from diffusion_jax.models.layers import NUM_GROUPS, QKV, Conv, Dense, Dropout, norm_silu, spread
from diffusion_jax.types import Array

zeros = nn.initializers.zeros


def group_norm(epsilon: float, dtype, name: str) -> nn.GroupNorm:
  """32 groups; statistics in float32."""
  return nn.GroupNorm(num_groups=NUM_GROUPS, epsilon=epsilon, dtype=dtype, name=name)


def conv(channels: int, dtype, name: str, **options) -> Conv:
  """3x3, the size kept unless the options say otherwise."""
  return Conv(channels, (3, 3), dtype=dtype, name=name, **options)


def average_pool(x: Array) -> Array:
  """Means of 2x2 squares: (B, H, W, C) -> (B, H/2, W/2, C)."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def nearest_upsample(x: Array) -> Array:
  """Every pixel becomes a 2x2 square: (B, H, W, C) -> (B, 2H, 2W, C)."""
  batch, height, width, channels = x.shape
  squares = (batch, height, 2, width, 2, channels)
  return jnp.broadcast_to(x[:, :, None, :, None], squares).reshape(
    batch, 2 * height, 2 * width, channels
  )


RESIZE = {'': lambda x: x, 'down': average_pool, 'up': nearest_upsample}


class ResidualBlock(nn.Module):
  """norm, SiLU, conv, conditioned norm, SiLU, dropout, conv (zero), plus the input.

  resample 'down' or 'up' halves or doubles both the activated input and the skip ('': neither).
  """

  channels: int
  dropout: float
  scale_shift_norm: bool
  norm_epsilon: float
  dtype: jnp.dtype
  resample: str = ''

  @nn.compact
  def __call__(self, x: Array, condition: Array, rows: Array | None) -> Array:
    """x (B, H, W, C), condition (B, d) -> (B, H', W', channels). rows: as Dropout."""
    resize = RESIZE[self.resample]
    h = resize(norm_silu(self.norm_epsilon, self.dtype, 'norm_in')(x))
    h = conv(self.channels, self.dtype, 'conv_in', hidden=True)(h)  # (B, H', W', channels)
    width = 2 * self.channels if self.scale_shift_norm else self.channels
    modulation = Dense(width, dtype=self.dtype, name='modulation')(nn.silu(condition))
    modulation = modulation.astype(jnp.float32)  # (B, width)
    norm_out = norm_silu(self.norm_epsilon, self.dtype, 'norm_out')
    if self.scale_shift_norm:
      scale, shift = jnp.split(modulation, 2, axis=-1)  # (B, channels)
      h = norm_out(h, shift, scale)
    else:
      h = norm_out(h + spread(modulation, h))
    h = Dropout(self.dropout)(h, rows)
    h = conv(self.channels, self.dtype, 'conv_out', kernel_init=zeros)(h)
    x = resize(x)
    if x.shape[-1] != self.channels:
      x = Dense(self.channels, dtype=self.dtype, name='skip')(x)
    return x + h


class AttentionBlock(nn.Module):
  """Self-attention over all positions, added to the input; zero at initialisation.

  Heads are head_channels wide, or num_heads of them if that is 0.
  """

  num_heads: int
  head_channels: int
  norm_epsilon: float
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> (B, H, W, C). Raises: ValueError for heads that cuDNN does not have."""
    channels = x.shape[-1]
    num_heads = channels // self.head_channels if self.head_channels else self.num_heads
    require_cudnn(self.attention, channels // num_heads, self.dtype)
    tokens = group_norm(self.norm_epsilon, self.dtype, 'norm')(x)
    tokens = tokens.reshape(x.shape[0], -1, channels)  # (B, HW, C)
    h = attend(QKV(num_heads, self.dtype, name='qkv')(tokens), self.attention)  # (B, HW, C)
    h = Dense(channels, dtype=self.dtype, kernel_init=zeros, name='out')(h)
    return x + h.reshape(x.shape)
