"""InceptionV3 of 2015-12-05, the network of FID and Inception Score (Szegedy et al. 2016, arXiv:1512.00567).

It is the graph of TensorFlow 1 that Heusel et al. (2017, arXiv:1706.08500) measured with, whose
arithmetic differs from other InceptionV3s: images are resized as TensorFlow 1 does (`resize`) and scaled
by (x - 128) / 128; average pools leave the padding out of the mean; the last block has a maximum pool in
its place. Batch norms are folded into the convolutions (pretrained/inception.py).
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array

HIGHEST = jax.lax.Precision.HIGHEST  # TF32 or bfloat16 would change the features.
SIDE = 299
NUM_LOGITS = 1008
RESIZE = 'bilinear to 299 px as TensorFlow 1: neither half-pixel centres nor antialiasing'


def resize(images: Array, side: int = SIDE) -> Array:
  """(B,H,W,C) float32 -> (B,side,side,C): pixel i is read at i n / side, in float32 throughout."""
  for axis in (2, 1):  # Along the rows first, as TensorFlow does.
    n = images.shape[axis]
    if n == side:
      continue  # i n / n: each pixel is itself.
    position = np.arange(side, dtype=np.float32) * np.float32(n / side)
    low = position.astype(np.int32)
    high = np.minimum(low + 1, n - 1)
    fraction = jnp.asarray(position - low).reshape([side if a == axis else 1 for a in range(4)])
    below, above = (jnp.take(images, index, axis=axis) for index in (low, high))
    images = below + (above - below) * fraction
  return images


def _of_three(x: Array, axis: int, stride: int, combine: Callable) -> Array:
  """combine of each three neighbours along an axis; slices, which a CPU does faster than windows."""
  end = (x.shape[axis] - 3) // stride * stride + 1
  return combine(*(jax.lax.slice_in_dim(x, i, i + end, stride, axis) for i in range(3)))


def _padded(x: Array, value: float) -> Array:
  return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


def mean_pool(x: Array) -> Array:
  """3x3, stride 1; at the edge the mean of what is there. Shape unchanged."""
  height, width = (np.convolve(np.ones(n), np.ones(3), 'same') for n in x.shape[1:3])
  sums = _padded(x, 0.0)
  for axis in (1, 2):
    sums = _of_three(sums, axis, 1, lambda a, b, c: a + b + c)
  return sums / jnp.asarray(np.outer(height, width)[..., None], x.dtype)


def max_pool(x: Array, stride: int = 2) -> Array:
  """3x3; stride 2 without padding, stride 1 with one pixel of it."""
  x = _padded(x, -jnp.inf) if stride == 1 else x
  for axis in (1, 2):
    x = _of_three(x, axis, stride, lambda a, b, c: jnp.maximum(jnp.maximum(a, b), c))
  return x


class Convolution(nn.Module):
  """With bias, then ReLU; padding 'SAME', or 'VALID' for 3x3 with either stride."""

  features: int
  kernel: tuple[int, int]
  stride: int
  padding: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (*self.kernel, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.he_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    if self.kernel == (1, 1):
      return nn.relu(jnp.dot(x, kernel[0, 0], precision=HIGHEST) + bias)
    # On a CPU unpadded convolutions are several times slower: one pixel more, then cut off.
    valid = self.padding == 'VALID'
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      ((0, 1), (0, 1)) if valid else 'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=HIGHEST,
    )
    x = x[:, :-1, :-1] if valid and self.stride == 1 else x
    return nn.relu(x + bias)


Convolve = Callable[..., Array]  # (name, x, features, kernel, stride, padding) -> Array


def block_a(conv: Convolve, x: Array, pool_features: int) -> Array:
  """35x35 (Figure 5)."""
  five = conv('branch5x5_1', x, 48)
  three = conv('branch3x3dbl_1', x, 64)
  three = conv('branch3x3dbl_2', three, 96, (3, 3))
  return joined(
    conv('branch1x1', x, 64),
    conv('branch5x5_2', five, 64, (5, 5)),
    conv('branch3x3dbl_3', three, 96, (3, 3)),
    conv('branch_pool', mean_pool(x), pool_features),
  )


def block_b(conv: Convolve, x: Array) -> Array:
  """35x35 -> 17x17 (Figure 10)."""
  three = conv('branch3x3dbl_1', x, 64)
  three = conv('branch3x3dbl_2', three, 96, (3, 3))
  return joined(
    conv('branch3x3', x, 384, (3, 3), 2, 'VALID'),
    conv('branch3x3dbl_3', three, 96, (3, 3), 2, 'VALID'),
    max_pool(x),
  )


def block_c(conv: Convolve, x: Array, width: int) -> Array:
  """17x17, with 7x7 in two factors (Figure 6)."""
  seven = conv('branch7x7_1', x, width)
  seven = conv('branch7x7_2', seven, width, (1, 7))
  double = conv('branch7x7dbl_1', x, width)
  double = conv('branch7x7dbl_2', double, width, (7, 1))
  double = conv('branch7x7dbl_3', double, width, (1, 7))
  double = conv('branch7x7dbl_4', double, width, (7, 1))
  return joined(
    conv('branch1x1', x, 192),
    conv('branch7x7_3', seven, 192, (7, 1)),
    conv('branch7x7dbl_5', double, 192, (1, 7)),
    conv('branch_pool', mean_pool(x), 192),
  )


def block_d(conv: Convolve, x: Array) -> Array:
  """17x17 -> 8x8."""
  seven = conv('branch7x7x3_1', x, 192)
  seven = conv('branch7x7x3_2', seven, 192, (1, 7))
  seven = conv('branch7x7x3_3', seven, 192, (7, 1))
  return joined(
    conv('branch3x3_2', conv('branch3x3_1', x, 192), 320, (3, 3), 2, 'VALID'),
    conv('branch7x7x3_4', seven, 192, (3, 3), 2, 'VALID'),
    max_pool(x),
  )


def block_e(conv: Convolve, x: Array, pool: Callable[[Array], Array]) -> Array:
  """8x8, with 3x3 in two factors side by side (Figure 7)."""
  three = conv('branch3x3_1', x, 384)
  double = conv('branch3x3dbl_2', conv('branch3x3dbl_1', x, 448), 384, (3, 3))
  return joined(
    conv('branch1x1', x, 320),
    conv('branch3x3_2a', three, 384, (1, 3)),
    conv('branch3x3_2b', three, 384, (3, 1)),
    conv('branch3x3dbl_3a', double, 384, (1, 3)),
    conv('branch3x3dbl_3b', double, 384, (3, 1)),
    conv('branch_pool', pool(x), 192),
  )


def joined(*branches: Array) -> Array:
  """Along the channels."""
  return jnp.concatenate(branches, axis=-1)


class InceptionV3(nn.Module):
  """Images of any size to the features of FID and the logits of Inception Score.

  Submodules have the names of torch-fidelity's, each a convolution with its batch norm folded in.
  """

  @nn.compact
  def __call__(self, images: Array) -> tuple[Array, Array]:
    """images (B,H,W,1 or 3) uint8 -> features (B, 2048), logits without bias (B, 1008), float32."""

    def convolve(block, name, x, features, kernel=(1, 1), stride=1, padding='SAME'):
      return Convolution(features, kernel, stride, padding, name=f'{block}{name}')(x)

    stem = partial(convolve, '')

    def block(name):
      return partial(convolve, f'{name}.')

    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    x = (resize(images.astype(jnp.float32)) - 128) / 128  # (B, 299, 299, 3)
    x = stem('Conv2d_1a_3x3', x, 32, (3, 3), 2, 'VALID')  # (B, 149, 149, 32)
    x = stem('Conv2d_2a_3x3', x, 32, (3, 3), 1, 'VALID')  # (B, 147, 147, 32)
    x = stem('Conv2d_2b_3x3', x, 64, (3, 3))
    x = max_pool(x)  # (B, 73, 73, 64)
    x = stem('Conv2d_3b_1x1', x, 80)
    x = stem('Conv2d_4a_3x3', x, 192, (3, 3), 1, 'VALID')  # (B, 71, 71, 192)
    x = max_pool(x)  # (B, 35, 35, 192)
    x = block_a(block('Mixed_5b'), x, 32)  # (B, 35, 35, 256)
    x = block_a(block('Mixed_5c'), x, 64)  # (B, 35, 35, 288)
    x = block_a(block('Mixed_5d'), x, 64)
    x = block_b(block('Mixed_6a'), x)  # (B, 17, 17, 768)
    for name, width in (('6b', 128), ('6c', 160), ('6d', 160), ('6e', 192)):
      x = block_c(block(f'Mixed_{name}'), x, width)
    x = block_d(block('Mixed_7a'), x)  # (B, 8, 8, 1280)
    x = block_e(block('Mixed_7b'), x, mean_pool)  # (B, 8, 8, 2048)
    x = block_e(block('Mixed_7c'), x, partial(max_pool, stride=1))
    features = x.mean(axis=(1, 2))
    dense = nn.Dense(NUM_LOGITS, use_bias=False, precision=HIGHEST, name='fc')
    return features, dense(features)
