"""Random keys as pure functions of (seed, purpose, index): nothing is carried, so nothing is lost.

threefry2x32 is pinned: the hardware generators are not invariant to the batch.
"""

import zlib

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def purpose_key(seed: int | Array, purpose: str) -> Array:
  """The key of everything drawn for `purpose` ('train', 'sample', ...) under `seed`."""
  return jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), zlib.crc32(purpose.encode()))


def example_keys(key: Array, indices: Array) -> Array:
  """One key an example: (B,) indices -> (B,) keys."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)


def fold_in_each(keys: Array, data: Array) -> Array:
  """(B,) keys and one number -> (B,) keys."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal_each(keys: Array, shape: tuple[int, ...]) -> Array:
  """(B,) keys -> (B, *shape) standard normal float32, each example from its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)
