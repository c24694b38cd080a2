"""UNet of DDPM (Ho et al. 2020, Appendix B) with ADM's conditioning (Dhariwal & Nichol 2021, arXiv:2105.05233).

Residual blocks take time and class through scale-shift GroupNorm; attention at chosen resolutions;
strided convolutions down, nearest-neighbour and convolution up.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.models.layers import (
  ConditionEmbedding,
  attend,
  require_divisible,
  require_positive,
)
from diffusion_jax.types import Array

NUM_GROUPS = 32
zeros = nn.initializers.zeros
lecun = nn.initializers.lecun_normal()


def group_norm(dtype, name: str) -> nn.GroupNorm:
  """32 groups; statistics in float32."""
  return nn.GroupNorm(num_groups=NUM_GROUPS, epsilon=1e-5, dtype=dtype, name=name)


class ResidualBlock(nn.Module):
  """norm, SiLU, conv, scale-shift norm by the condition, SiLU, dropout, conv (zero), plus the input."""

  channels: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, condition: Array, train: bool) -> Array:
    """x (B, H, W, C), condition (B, d) -> (B, H, W, channels)."""
    h = nn.silu(group_norm(self.dtype, 'norm_in')(x))
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name='conv_in')(h)
    modulation = nn.Dense(2 * self.channels, dtype=self.dtype, name='modulation')(
      nn.silu(condition)
    )
    scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)  # (B, 1, 1, channels)
    h = group_norm(self.dtype, 'norm_out')(h) * (1 + scale) + shift
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
    h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name='conv_out')(h)
    if x.shape[-1] != self.channels:
      x = nn.Dense(self.channels, dtype=self.dtype, name='skip')(x)
    return x + h


class AttentionBlock(nn.Module):
  """Self-attention over all positions, added to the input; zero at initialisation."""

  num_heads: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> (B, H, W, C)."""
    channels = x.shape[-1]
    tokens = group_norm(self.dtype, 'norm')(x).reshape(x.shape[0], -1, channels)  # (B, HW, C)
    h = attend(nn.Dense(3 * channels, dtype=self.dtype, name='qkv')(tokens), self.num_heads)
    h = nn.Dense(channels, dtype=self.dtype, kernel_init=zeros, name='out')(h)
    return x + h.reshape(x.shape)


class UNet(nn.Module):
  """x (B, H, W, C), network time (B,), labels (B,) -> (B, H, W, out_channels) float32."""

  channels: int
  channel_mult: tuple[int, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  num_heads: int
  dropout: float
  out_channels: int
  num_classes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, time: Array, y: Array, *, train: bool = False) -> Array:
    """Raises: ValueError if the image cannot be halved often enough or attention would be nowhere."""
    self._check(x.shape[1:3])
    condition = ConditionEmbedding(
      4 * self.channels, self.channels, self.num_classes, self.dtype, lecun, name='condition'
    )(time, y)  # (B, 4 channels)

    def stage(h, channels, name):
      h = ResidualBlock(channels, self.dropout, self.dtype, name=f'{name}_residual')(
        h, condition, train
      )
      if h.shape[1] in self.attention_resolutions:
        h = AttentionBlock(self.num_heads, self.dtype, name=f'{name}_attention')(h)
      return h

    def conv(channels, name, stride=1):
      return nn.Conv(channels, (3, 3), (stride, stride), padding=1, dtype=self.dtype, name=name)

    last = len(self.channel_mult) - 1
    h = conv(self.channels, 'conv_in')(x)
    skips = [h]
    for level, mult in enumerate(self.channel_mult):
      for block in range(self.num_res_blocks):
        h = stage(h, mult * self.channels, f'down_{level}_{block}')
        skips.append(h)
      if level < last:
        h = conv(h.shape[-1], f'down_{level}_resample', stride=2)(h)  # (B, H/2, W/2, C)
        skips.append(h)

    middle = h.shape[-1]
    h = ResidualBlock(middle, self.dropout, self.dtype, name='mid_0_residual')(h, condition, train)
    h = AttentionBlock(self.num_heads, self.dtype, name='mid_attention')(h)
    h = ResidualBlock(middle, self.dropout, self.dtype, name='mid_1_residual')(h, condition, train)

    for level, mult in reversed(list(enumerate(self.channel_mult))):
      for block in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = stage(h, mult * self.channels, f'up_{level}_{block}')
      if level > 0:
        batch, height, width, channels = h.shape
        h = jax.image.resize(h, (batch, 2 * height, 2 * width, channels), 'nearest')
        h = conv(channels, f'up_{level}_resample')(h)  # (B, 2H, 2W, C)

    h = nn.silu(group_norm(self.dtype, 'norm_out')(h))
    h = nn.Conv(self.out_channels, (3, 3), dtype=self.dtype, kernel_init=zeros, name='conv_out')(h)
    return h.astype(jnp.float32)

  def _check(self, size: tuple[int, int]) -> None:
    halvings = len(self.channel_mult) - 1
    if any(side % 2**halvings for side in size):
      raise ValueError(
        f'channel_mult: got {len(self.channel_mult)} levels, which halve the image {halvings} '
        f'times; {size[0]}x{size[1]} allows sides divisible by {2**halvings}'
      )
    sides = [size[0] >> level for level in range(halvings + 1)]
    unused = [side for side in self.attention_resolutions if side not in sides]
    if unused:
      raise ValueError(f'attention_resolutions: got {unused}, allowed sides of this UNet: {sides}')


def build(
  *,
  channels: int,
  channel_mult: tuple[int, ...],
  num_res_blocks: int,
  attention_resolutions: tuple[int, ...],
  num_heads: int,
  dropout: float,
  out_channels: int,
  num_classes: int,
  dtype: jnp.dtype,
) -> UNet:
  """attention_resolutions are the sides, in pixels of the feature map, that have attention.

  Raises: ValueError for sizes that do not fit each other.
  """
  require_positive(channels=channels, num_res_blocks=num_res_blocks, num_heads=num_heads)
  require_divisible('channels', channels, 'the norm groups', NUM_GROUPS)
  require_divisible('channels', channels, 'num_heads', num_heads)
  if not channel_mult or any(mult < 1 for mult in channel_mult):
    raise ValueError(f'channel_mult: got {channel_mult}, allowed one positive integer a level')
  if not 0 <= dropout < 1:
    raise ValueError(f'dropout: got {dropout}, allowed 0 <= dropout < 1')
  return UNet(
    channels,
    tuple(channel_mult),
    num_res_blocks,
    tuple(attention_resolutions),
    num_heads,
    dropout,
    out_channels,
    num_classes,
    dtype,
  )
