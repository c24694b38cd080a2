"""Diffusion transformer with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).

The blocks are scanned: their parameters are stacked along a leading axis of length `depth`, and the
time to compile does not grow with it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.options import (
  IF_GIVEN,
  NOT_NEGATIVE,
  one_of,
  option,
  require_options,
)
from diffusion_jax.models.attention import attend, attention_option, require_cudnn
from diffusion_jax.models.layers import (
  QKV,
  SIZE,
  ConditionEmbedding,
  Dense,
  modulate,
  remat,
  remat_option,
  require_divisible,
  spread,
)
from diffusion_jax.types import Array, Condition

SINUSOID_WIDTH = 256
xavier = nn.initializers.xavier_uniform()
zeros = nn.initializers.zeros


def patchify(x: Array, patch_size: int) -> Array:
  """(B, H, W, C) -> (B, H/p W/p, p p C): rows of patches, each ordered (row, column, channel)."""
  batch, height, width, channels = x.shape
  p = patch_size
  x = x.reshape(batch, height // p, p, width // p, p, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, p * p * channels)


def unpatchify(tokens: Array, patch_size: int, height: int, width: int) -> Array:
  """The inverse of patchify: (B, H/p W/p, p p C) -> (B, H, W, C)."""
  batch, p = tokens.shape[0], patch_size
  x = tokens.reshape(batch, height // p, width // p, p, p, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


def position_embedding(rows: int, columns: int, width: int) -> np.ndarray:
  """Frozen 2-D sinusoids, the column's half first, each [sin, cos]: (rows columns, width) float32."""
  quarter = width // 4
  frequencies = 1 / 10_000 ** (np.arange(quarter) / quarter)
  row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing='ij')
  halves = []
  for coordinate in (column, row):
    angles = coordinate.reshape(-1, 1) * frequencies  # (rows columns, width/4)
    halves += [np.sin(angles), np.cos(angles)]
  return np.concatenate(halves, axis=1).astype(np.float32)


def layer_norm(dtype) -> nn.LayerNorm:
  """LayerNorm without affine parameters; statistics in float32."""
  return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, dtype=dtype)


@jax.checkpoint
def gelu(x: Array) -> Array:
  """GELU by its tanh approximation; the backward pass computes it again from x."""
  return nn.gelu(x, approximate=True)


@jax.checkpoint
def modulated_norm(x: Array, shift: Array, scale: Array) -> Array:
  """LayerNorm of x (B, N, d), then `modulate`; the backward pass computes it again from x."""
  return modulate(layer_norm(x.dtype).apply({}, x), shift, scale)


class AdaLNZero(nn.Module):
  """Condition c (B, d) -> `num_outputs` vectors (B, d) float32, all zero at initialisation."""

  num_outputs: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, c: Array) -> list[Array]:
    width = self.num_outputs * c.shape[-1]
    h = Dense(width, dtype=self.dtype, kernel_init=zeros, name='modulation')(nn.silu(c))
    return jnp.split(h.astype(jnp.float32), self.num_outputs, axis=-1)


class DiTBlock(nn.Module):
  """Attention and MLP, each modulated before and gated after (Figure 3, adaLN-Zero)."""

  num_heads: int
  mlp_ratio: float
  attention: str
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, c: Array) -> tuple[Array, None]:
    """x (B, N, d), c (B, d) -> x; None is the scan's per-block output."""
    width = x.shape[-1]

    def dense(features, name, hidden=False):
      return Dense(features, dtype=self.dtype, kernel_init=xavier, hidden=hidden, name=name)

    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = AdaLNZero(6, self.dtype, name='adaln')(c)
    h = modulated_norm(x, shift_a, scale_a)
    h = attend(QKV(self.num_heads, self.dtype, xavier, name='qkv')(h), self.attention)  # (B, N, d)
    h = dense(width, 'attention_out')(h)
    x = x + spread(gate_a, h) * h
    h = modulated_norm(x, shift_m, scale_m)
    h = gelu(dense(int(self.mlp_ratio * width), 'mlp_in', hidden=True)(h))
    h = dense(width, 'mlp_out')(h)
    x = x + spread(gate_m, h) * h
    self.sow('intermediates', 'hidden', x, reduce_fn=lambda _, new: new)
    return x, None


class DiT(nn.Module):
  """x (B, H, W, C), network time (B,), condition -> (B, H, W, out_channels) float32.

  dtype: of all but the condition and what comes after the blocks, which are float32.
  """

  patch_size: int = option(
    2,
    'Side of a patch; 0 takes the smallest that gives at most 16 x 16 patches.',
    SIZE,
    from_data=0,
  )
  hidden_size: int = option(
    384, 'Width of the transformer, a multiple of num_heads and of 4.', SIZE
  )
  depth: int = option(12, 'Transformer blocks.', SIZE)
  num_heads: int = option(6, 'Attention heads.', SIZE)
  mlp_ratio: float = option(4.0, "Width of the MLP's hidden layer in units of hidden_size.", SIZE)
  frequency_shift: int = option(
    0, 'Frequencies of the time embedding: 0 is the published DiT, 1 is diffusers.', one_of(0, 1)
  )
  attention: str = attention_option()
  remat: str = remat_option()
  unroll: int = option(
    1,
    'Blocks that the compiler sees at once; 0: all. More take longer to compile and may run faster, as on CPU.',
    NOT_NEGATIVE,
    IF_GIVEN,
  )
  out_channels: int = 3
  num_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  def __post_init__(self):
    """Raises: ValueError for sizes that do not fit each other, and for attention that cannot run."""
    super().__post_init__()
    require_options(self)
    require_divisible('hidden_size', self.hidden_size, 'num_heads', self.num_heads)
    require_divisible('hidden_size', self.hidden_size, 'the position embedding', 4)
    require_cudnn(self.attention, self.hidden_size // self.num_heads, self.dtype)

  @nn.compact
  def __call__(
    self,
    x: Array,
    time: Array,
    condition: Condition,
    *,
    train: bool = False,
    residual: Array | None = None,
  ) -> Array:
    """residual (B, N, d) float32: what the blocks add to the tokens, instead of running them.

    Where they run, it is sown as 'residual' into the collection 'residuals'.
    Raises: ValueError if patch_size does not divide the height and width.
    """
    del train  # The published DiT has no dropout.
    p, (height, width) = self.patch_size, x.shape[1:3]
    if height % p or width % p:
      allowed = [q for q in range(1, min(height, width) + 1) if height % q == width % q == 0]
      raise ValueError(f'patch_size: got {p}, allowed for {height}x{width} images: {allowed}')
    tokens = Dense(self.hidden_size, dtype=self.dtype, kernel_init=xavier, name='patch_in')(
      patchify(x, p)
    )  # (B, N, d)
    positions = position_embedding(height // p, width // p, self.hidden_size)
    tokens = tokens + jnp.asarray(positions, self.dtype)
    c = ConditionEmbedding(
      self.hidden_size,
      SINUSOID_WIDTH,
      self.num_classes,
      frequency_shift=self.frequency_shift,
      name='condition',
    )(time, condition)  # (B, d)

    # Inside a scan nothing can be merged with its recomputation, so prevent_cse would only cost.
    block = remat(DiTBlock, self.remat, prevent_cse=False)
    blocks = nn.scan(
      block,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=self.depth,
      in_axes=nn.broadcast,
      unroll=self.unroll or self.depth,
    )(self.num_heads, self.mlp_ratio, self.attention, self.dtype, name='blocks')
    if residual is None:
      before = tokens
      tokens, _ = blocks(tokens, c)
      difference = tokens.astype(jnp.float32) - before.astype(jnp.float32)
      if not self.is_initializing():
        self.sow('residuals', 'residual', difference, reduce_fn=lambda _, new: new)
    else:
      tokens = (tokens + residual).astype(self.dtype)

    shift, scale = AdaLNZero(2, jnp.float32, name='final_adaln')(c)
    tokens = modulate(layer_norm(jnp.float32)(tokens), shift, scale)
    tokens = Dense(p * p * self.out_channels, kernel_init=zeros, name='patch_out')(
      tokens
    )  # (B, N, p p out_channels)
    return unpatchify(tokens, p, height, width)
