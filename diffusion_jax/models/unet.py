"""UNets of DDPM (Ho et al. 2020, Appendix B) and ADM (Dhariwal & Nichol 2021, arXiv:2105.05233).

Residual blocks under time and class, attention at chosen resolutions, a skip from every block on the
way down to one on the way up. The two differ in options only:

|                   | DDPM   | ADM        |
|-------------------|--------|------------|
| scale_shift_norm  | False  | True       |
| resample          | 'conv' | 'residual' |
| num_heads         | 1      | 4, or head_channels = 64 |
| frequency_shift   | 1      | 0          |
| norm_epsilon      | 1e-6   | 1e-5       |
"""

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.models.layers import ConditionEmbedding, require_divisible, require_positive
from diffusion_jax.models.unet_blocks import (
  NUM_GROUPS,
  AttentionBlock,
  ResidualBlock,
  conv,
  group_norm,
  nearest_upsample,
  zeros,
)
from diffusion_jax.types import Array

lecun = nn.initializers.lecun_normal()


class UNet(nn.Module):
  """x (B, H, W, C), network time (B,), labels (B,) -> (B, H, W, out_channels) float32.

  dtype: of all but the condition and the last norm and convolution, which are float32.
  """

  channels: int
  channel_mult: tuple[int, ...]
  num_res_blocks: int
  attention_resolutions: tuple[int, ...]
  num_heads: int
  head_channels: int
  dropout: float
  scale_shift_norm: bool
  resample: str
  frequency_shift: int
  norm_epsilon: float
  attention: str
  remat: bool
  out_channels: int
  num_classes: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, time: Array, y: Array, *, train: bool = False) -> Array:
    """Raises: ValueError if the image cannot be halved often enough or attention would be nowhere."""
    self._check(x.shape[1:3])
    condition = ConditionEmbedding(
      4 * self.channels,
      self.channels,
      self.num_classes,
      kernel_init=lecun,
      frequency_shift=self.frequency_shift,
      name='condition',
    )(time, y)  # (B, 4 channels)
    residual_block, attention_block = ResidualBlock, AttentionBlock
    if self.remat:
      residual_block = nn.remat(ResidualBlock, static_argnums=(3,))  # `train`, after self.
      attention_block = nn.remat(AttentionBlock)

    def residual(h, channels, name, resample=''):
      block = residual_block(
        channels,
        self.dropout,
        self.scale_shift_norm,
        self.norm_epsilon,
        self.dtype,
        resample,
        name=name,
      )
      return block(h, condition, train)

    def attend(h, name):
      block = attention_block(
        self.num_heads,
        self.head_channels,
        self.norm_epsilon,
        self.attention,
        self.dtype,
        name=name,
      )
      return block(h)

    def stage(h, channels, name):
      h = residual(h, channels, f'{name}_residual')
      if h.shape[1] in self.attention_resolutions:
        h = attend(h, f'{name}_attention')
      return h

    def down(h, name):
      """(B, H, W, C) -> (B, H/2, W/2, C)."""
      if self.resample == 'residual':
        return residual(h, h.shape[-1], name, 'down')
      padding = ((0, 1), (0, 1))  # Right and bottom only, as in DDPM.
      return conv(h.shape[-1], self.dtype, name, strides=(2, 2), padding=padding)(h)

    def up(h, name):
      """(B, H, W, C) -> (B, 2H, 2W, C)."""
      if self.resample == 'residual':
        return residual(h, h.shape[-1], name, 'up')
      return conv(h.shape[-1], self.dtype, name)(nearest_upsample(h))

    levels = list(enumerate(self.channel_mult))
    h = conv(self.channels, self.dtype, 'conv_in')(x)
    skips = [h]
    for level, mult in levels:
      for block in range(self.num_res_blocks):
        h = stage(h, mult * self.channels, f'down_{level}_{block}')
        skips.append(h)
      if level < len(levels) - 1:
        h = down(h, f'down_{level}_resample')
        skips.append(h)

    middle = h.shape[-1]
    h = residual(h, middle, 'mid_0_residual')
    h = attend(h, 'mid_attention')
    h = residual(h, middle, 'mid_1_residual')

    for level, mult in reversed(levels):
      for block in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = stage(h, mult * self.channels, f'up_{level}_{block}')
      if level > 0:
        h = up(h, f'up_{level}_resample')

    h = nn.silu(group_norm(self.norm_epsilon, jnp.float32, 'norm_out')(h))
    return conv(self.out_channels, jnp.float32, 'conv_out', kernel_init=zeros)(h)

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
  head_channels: int,
  dropout: float,
  scale_shift_norm: bool,
  resample: str,
  frequency_shift: int,
  norm_epsilon: float,
  attention: str,
  remat: bool,
  out_channels: int,
  num_classes: int,
  dtype: jnp.dtype,
) -> UNet:
  """attention_resolutions are the sides, in pixels of the feature map, that have attention.

  Raises: ValueError for sizes that do not fit each other.
  """
  require_positive(
    channels=channels,
    num_res_blocks=num_res_blocks,
    num_heads=num_heads,
    norm_epsilon=norm_epsilon,
  )
  require_divisible('channels', channels, 'the norm groups', NUM_GROUPS)
  if head_channels < 0:
    raise ValueError(f'head_channels: got {head_channels}, allowed >= 0 (0: num_heads decides)')
  if head_channels:
    require_divisible('channels', channels, 'head_channels', head_channels)
  else:
    require_divisible('channels', channels, 'num_heads', num_heads)
  if not channel_mult or any(mult < 1 for mult in channel_mult):
    raise ValueError(f'channel_mult: got {channel_mult}, allowed one positive integer a level')
  if not 0 <= dropout < 1:
    raise ValueError(f'dropout: got {dropout}, allowed 0 <= dropout < 1')
  _require_one_of('resample', resample, 'conv', 'residual')
  _require_one_of('frequency_shift', frequency_shift, 0, 1)
  _require_one_of('attention', attention, 'xla', 'cudnn')
  if attention == 'cudnn' and jnp.dtype(dtype) == jnp.float32:
    raise ValueError(
      "attention: got 'cudnn', which has no float32; allowed 'xla', or dtype bfloat16 on a GPU"
    )
  return UNet(
    channels=channels,
    channel_mult=tuple(channel_mult),
    num_res_blocks=num_res_blocks,
    attention_resolutions=tuple(attention_resolutions),
    num_heads=num_heads,
    head_channels=head_channels,
    dropout=dropout,
    scale_shift_norm=scale_shift_norm,
    resample=resample,
    frequency_shift=frequency_shift,
    norm_epsilon=norm_epsilon,
    attention=attention,
    remat=remat,
    out_channels=out_channels,
    num_classes=num_classes,
    dtype=dtype,
  )


def _require_one_of(name: str, value, *allowed) -> None:
  if value not in allowed:
    raise ValueError(f'{name}: got {value!r}, allowed {", ".join(map(repr, allowed))}')
