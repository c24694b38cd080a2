"""KL autoencoder (Rombach et al. 2022, arXiv:2112.10752, Appendix G; the first-stage models KL-f4 and KL-f8).

Residual convolution blocks without conditions, halved between levels by a strided convolution that
pads right and bottom, self-attention in the middle only; GroupNorm with epsilon 1e-6 throughout.
Images are in [-1, 1].
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.config.options import option, require_options
from diffusion_jax.models.attention import attend
from diffusion_jax.models.layers import (
  LEVELS,
  NUM_GROUPS,
  QKV,
  SIZE,
  Conv,
  Dense,
  norm_silu,
  require_divisible,
)
from diffusion_jax.types import Array, PyTree

EPSILON = 1e-6  # Of norms.
MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class Posterior(NamedTuple):
  """q(z | image) = N(mean, exp(logvar)), diagonal: both (B, h, w, z) float32."""

  mean: Array
  logvar: Array

  @classmethod
  def from_parameters(cls, parameters: Array) -> 'Posterior':
    """parameters (..., 2 z): mean and log variance, the latter clipped as published."""
    mean, logvar = jnp.split(parameters.astype(jnp.float32), 2, axis=-1)
    return cls(mean, jnp.clip(logvar, MIN_LOGVAR, MAX_LOGVAR))

  def sample(self, noise: Array) -> Array:
    """mean + std * noise."""
    return self.mean + jnp.exp(0.5 * self.logvar) * noise

  def kl(self) -> Array:
    """KL(q || N(0, 1)) in nats, summed over each latent: (B,)."""
    terms = jnp.square(self.mean) + jnp.exp(self.logvar) - 1 - self.logvar
    return 0.5 * jnp.sum(terms, axis=(1, 2, 3))


def conv(channels: int, dtype, name: str | None, kernel: int = 3, hidden: bool = False) -> Conv:
  """A convolution that keeps the size."""
  return Conv(
    channels, (kernel, kernel), padding=kernel // 2, dtype=dtype, hidden=hidden, name=name
  )


def norm(dtype, name: str) -> nn.GroupNorm:
  """32 groups; statistics in float32."""
  return nn.GroupNorm(num_groups=NUM_GROUPS, epsilon=EPSILON, dtype=dtype, name=name)


class ResidualBlock(nn.Module):
  """Twice norm, SiLU, convolution, plus the input."""

  channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> (B, H, W, channels)."""
    h = norm_silu(EPSILON, self.dtype, 'norm_in')(x)
    h = conv(self.channels, self.dtype, 'conv_in', hidden=True)(h)
    h = norm_silu(EPSILON, self.dtype, 'norm_out')(h)
    h = conv(self.channels, self.dtype, 'conv_out')(h)
    if x.shape[-1] != self.channels:
      x = Dense(self.channels, dtype=self.dtype, name='skip')(x)
    return x + h


class AttentionBlock(nn.Module):
  """Single-head self-attention over all positions, added to the input."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """(B, H, W, C) -> (B, H, W, C)."""
    channels = x.shape[-1]
    tokens = norm(self.dtype, 'norm')(x).reshape(x.shape[0], -1, channels)  # (B, HW, C)
    h = attend(QKV(1, self.dtype, name='qkv')(tokens))  # (B, HW, C)
    return x + Dense(channels, dtype=self.dtype, name='out')(h).reshape(x.shape)


class Middle(nn.Module):
  """Residual block, attention, residual block."""

  dtype: jnp.dtype

  @nn.compact
  def __call__(self, h: Array) -> Array:
    h = ResidualBlock(h.shape[-1], self.dtype, name='residual_0')(h)
    h = AttentionBlock(self.dtype, name='attention')(h)
    return ResidualBlock(h.shape[-1], self.dtype, name='residual_1')(h)


class Encoder(nn.Module):
  """(B, H, W, 3) -> (B, H/f, W/f, 2 z_channels) with f = 2^(levels - 1)."""

  channels: int
  channel_mult: tuple[int, ...]
  num_res_blocks: int
  z_channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, images: Array) -> Array:
    h = conv(self.channels, self.dtype, 'conv_in')(images)
    for level, mult in enumerate(self.channel_mult):
      for block in range(self.num_res_blocks):
        name = f'down_{level}_{block}'
        h = ResidualBlock(mult * self.channels, self.dtype, name=name)(h)
      if level < len(self.channel_mult) - 1:
        h = Conv(
          h.shape[-1],
          (3, 3),
          strides=2,
          padding=((0, 1), (0, 1)),
          dtype=self.dtype,
          name=f'down_{level}_resample',
        )(h)  # (B, H/2, W/2, C)
    h = Middle(self.dtype, name='mid')(h)
    h = norm_silu(EPSILON, self.dtype, 'norm_out')(h)
    return conv(2 * self.z_channels, self.dtype, 'conv_out')(h)


class Decoder(nn.Module):
  """(B, h, w, z_channels) -> (B, f h, f w, out_channels); the last norm and convolution in float32."""

  channels: int
  channel_mult: tuple[int, ...]
  num_res_blocks: int
  out_channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, z: Array, head: bool = True) -> Array:
    """Without head: the features that the last convolution sees."""
    h = conv(self.channel_mult[-1] * self.channels, self.dtype, 'conv_in')(z)
    h = Middle(self.dtype, name='mid')(h)
    for level, mult in reversed(list(enumerate(self.channel_mult))):
      for block in range(self.num_res_blocks + 1):
        h = ResidualBlock(mult * self.channels, self.dtype, name=f'up_{level}_{block}')(h)
      if level > 0:
        batch, height, width, channels = h.shape
        h = jax.image.resize(h, (batch, 2 * height, 2 * width, channels), 'nearest')
        h = conv(channels, self.dtype, f'up_{level}_resample')(h)  # (B, 2H, 2W, C)
    h = norm_silu(EPSILON, jnp.float32, 'norm_out')(h)
    return conv(self.out_channels, jnp.float32, 'conv_out')(h) if head else h


class AutoencoderKL(nn.Module):
  """encode and decode, as methods of `apply(..., method='encode')`.

  KL-f4 by default; KL-f8: channel_mult (1, 2, 4, 4), z_channels and embed_channels 4.
  """

  channels: int = option(128, 'Channels of the first level, a multiple of 32.', SIZE)
  channel_mult: tuple[int, ...] = option(
    (1, 2, 4),
    'Channels of each level in units of `channels`; each further level halves the image, '
    'here f = 4.',
    LEVELS,
  )
  num_res_blocks: int = option(2, 'Residual blocks per level.', SIZE)
  z_channels: int = option(3, "Channels of the encoder's output and the decoder's input.", SIZE)
  embed_channels: int = option(3, 'Channels of the latents.', SIZE)
  image_channels: int = 3
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    """Raises: ValueError for sizes that do not fit each other."""
    super().__post_init__()
    require_options(self)
    require_divisible('channels', self.channels, 'the norm groups', NUM_GROUPS)

  def setup(self):
    sizes = (self.channels, self.channel_mult, self.num_res_blocks)
    self.encoder = Encoder(*sizes, self.z_channels, self.dtype)
    self.decoder = Decoder(*sizes, self.image_channels, self.dtype)
    self.quant_conv = Dense(2 * self.embed_channels, dtype=self.dtype)
    self.post_quant_conv = Dense(self.z_channels, dtype=self.dtype)

  @property
  def factor(self) -> int:
    """Pixels a latent, along each side."""
    return 2 ** (len(self.channel_mult) - 1)

  def encode(self, images: Array) -> Posterior:
    """images (B, H, W, C) in [-1, 1] -> the posterior (B, H/f, W/f, embed_channels).

    Raises: ValueError if f does not divide the height and width.
    """
    height, width = images.shape[1:3]
    if height % self.factor or width % self.factor:
      raise ValueError(f'images: got {height}x{width}, allowed multiples of {self.factor}')
    return Posterior.from_parameters(self.quant_conv(self.encoder(images)))

  def decode(self, z: Array) -> Array:
    """z (B, h, w, embed_channels) -> images (B, f h, f w, C) float32, not clipped."""
    return self.decoder(self.post_quant_conv(z))

  def features(self, images: Array, noise: Array) -> tuple[Array, Posterior]:
    """Runs __call__ up to the decoder's last convolution."""
    posterior = self.encode(images)
    z = self.post_quant_conv(posterior.sample(noise))
    return self.decoder(z, head=False), posterior

  def __call__(self, images: Array, noise: Array) -> tuple[Array, Posterior]:
    """images, noise (B, h, w, embed_channels) -> reconstruction of a posterior sample, posterior."""
    posterior = self.encode(images)
    return self.decode(posterior.sample(noise)), posterior


def decoder_head(module: AutoencoderKL, params: PyTree, features: Array) -> Array:
  """The decoder's last convolution of features (B, H, W, C); params: those of decoder/conv_out."""
  return conv(module.image_channels, jnp.float32, None).apply({'params': params}, features)
