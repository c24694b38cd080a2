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

from diffusion_jax.config.options import (
  IN_TRAINING,
  NOT_NEGATIVE,
  SHARE,
  one_of,
  option,
  require_options,
)
from diffusion_jax.models.attention import MULTIPLE, attention_option, require_cudnn
from diffusion_jax.models.layers import (
  LEVELS,
  NUM_GROUPS,
  SIZE,
  ConditionEmbedding,
  norm_silu,
  remat,
  remat_option,
  require_divisible,
)
from diffusion_jax.models.unet_blocks import (
  AttentionBlock,
  ResidualBlock,
  conv,
  nearest_upsample,
  zeros,
)
from diffusion_jax.types import Array, Condition

lecun = nn.initializers.lecun_normal()


class UNet(nn.Module):
  """x (B, H, W, C), network time (B,), condition -> (B, H, W, out_channels) float32.

  dtype: of all but the condition and the last norm and convolution, which are float32.
  """

  channels: int = option(64, 'Channels of the first level, a multiple of 32.', SIZE)
  channel_mult: tuple[int, ...] = option(
    (1, 2),
    'Channels of each level in units of `channels`.',
    LEVELS,
  )
  num_res_blocks: int = option(2, 'Residual blocks per level; the way up has one more.', SIZE)
  attention_resolutions: tuple[int, ...] = option(
    (4,), 'Sides, in pixels, of the feature maps that attention is applied to.'
  )
  num_heads: int = option(4, 'Attention heads; DDPM has 1.', SIZE)
  head_channels: int = option(
    0, 'Width of an attention head, which then gives their number; 0 uses num_heads.', NOT_NEGATIVE
  )
  dropout: float = option(0.1, 'Dropout rate in residual blocks.', SHARE, IN_TRAINING)
  scale_shift_norm: bool = option(
    True, 'Let the condition scale and shift the norms (ADM); False adds it to the features (DDPM).'
  )
  resample: str = option(
    'conv',
    "Layers that change the resolution: 'conv' is a convolution (DDPM), 'residual' a "
    'residual block that pools (ADM).',
    one_of('conv', 'residual'),
  )
  frequency_shift: int = option(
    0, 'Frequencies of the time embedding: 0 is ADM, 1 is DDPM.', one_of(0, 1)
  )
  norm_epsilon: float = option(1e-5, 'Epsilon of GroupNorm: 1e-5 (ADM) or 1e-6 (DDPM).', SIZE)
  attention: str = attention_option()
  remat: str = remat_option()
  out_channels: int = 3
  num_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    """Raises: ValueError for sizes that do not fit each other."""
    super().__post_init__()
    require_options(self)
    require_divisible('channels', self.channels, 'the norm groups', NUM_GROUPS)
    if self.head_channels:
      require_divisible('channels', self.channels, 'head_channels', self.head_channels)
    else:
      require_divisible('channels', self.channels, 'num_heads', self.num_heads)
    require_cudnn(self.attention, MULTIPLE, self.dtype)  # Heads are as wide as their level says.

  @nn.compact
  def __call__(
    self,
    x: Array,
    time: Array,
    condition: Condition,
    *,
    train: bool = False,
    rows: Array | None = None,
  ) -> Array:
    """rows: numbers of the examples in the batch, for dropout; 0 to B - 1 if not given.

    Raises: ValueError if the image cannot be halved often enough or attention would be nowhere.
    """
    self._check(x.shape[1:3])
    rows = (jnp.arange(len(x)) if rows is None else rows) if train else None
    c = ConditionEmbedding(
      4 * self.channels,
      self.channels,
      self.num_classes,
      kernel_init=lecun,
      frequency_shift=self.frequency_shift,
      name='condition',
    )(time, condition)  # (B, 4 channels)
    residual_block = remat(ResidualBlock, self.remat)
    attention_block = remat(AttentionBlock, self.remat)

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
      return block(h, c, rows)

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
    self.sow('intermediates', 'hidden', h, reduce_fn=lambda _, new: new)

    for level, mult in reversed(levels):
      for block in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = stage(h, mult * self.channels, f'up_{level}_{block}')
      if level > 0:
        h = up(h, f'up_{level}_resample')

    h = norm_silu(self.norm_epsilon, jnp.float32, 'norm_out')(h)
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
