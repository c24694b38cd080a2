"""Random parameters and inputs, drawn by NumPy: the same on every device, and nothing to compile."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, PyTree

SEED = 0


def random_params(abstract: PyTree, gain: float = 1.0) -> PyTree:
  """Parameters of a trained network's size, NumPy.

  Initial ones have gates and last layers of zero, which would hide what lies behind them, and speeds
  on zeros are not those on numbers. gain: variance that a layer adds, 2 before ReLU.
  """
  generator = np.random.default_rng(SEED)

  def draw(path, leaf):
    values = generator.standard_normal(leaf.shape, np.float32)
    names = [entry.key for entry in path]
    if names[-1] == 'scale':
      return 1 + np.float32(0.02) * values
    if names[-1] != 'kernel':
      return np.float32(0.02) * values
    if names[-2] == 'qkv':
      fan_in = leaf.shape[-4]  # (..., d, 3, heads, head width)
    else:
      fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim == 4 else leaf.shape[-2]
    small = 0.1 if any('adaln' in name for name in names) else 1.0  # Dozens of residual branches.
    return np.float32(small * math.sqrt(gain / fan_in)) * values

  return jax.tree_util.tree_map_with_path(draw, abstract)


def normal(number: int, *shape: int) -> Array:
  """Standard normal float32 on the device. number: of the draw."""
  generator = np.random.default_rng((SEED, number))
  return jnp.asarray(generator.standard_normal(shape, np.float32))


def random_images(count: int, shape: tuple[int, int, int]) -> Array:
  """(count, H, W, C) uint8."""
  generator = np.random.default_rng((SEED, 1))
  return jnp.asarray(generator.integers(0, 256, (count, *shape), np.uint8))
