"""Latents as a backbone sees them, and in batches through the autoencoder.

x0 = (sample of the posterior - shift) * scale, so that what diffuses has standard deviation 1
(Rombach et al. 2022, arXiv:2112.10752, Appendix G). x0 is never clipped: latents have no bound.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


class Scaling(NamedTuple):
  """shift: (c,) float32. scale: () float32."""

  shift: Array
  scale: Array

  def normalise(self, z: Array) -> Array:
    """Latents (..., c) of the autoencoder -> x0."""
    return (z - self.shift) * self.scale

  def restore(self, x0: Array) -> Array:
    """The inverse of normalise."""
    return x0 / self.scale + self.shift


def in_batches(
  function: Callable[[Array], Array], x: Array, *, batch_size: int, shards: int
) -> Array:
  """function(x) with at most batch_size rows of each device's part at once, inside jit.

  x: (B, ...), cut along its first axis over `shards` devices, which divide B. function treats every
  row for itself. Each batch takes rows of all devices, so nothing moves between them.
  """
  rows = x.shape[0] // shards
  count = -(-rows // batch_size)
  if count <= 1:
    return function(x)
  size = -(-rows // count)
  inner = x.shape[1:]
  parts = x.reshape(shards, rows, *inner)
  padding = [(0, 0), (0, count * size - rows)] + [(0, 0)] * len(inner)
  parts = jnp.pad(parts, padding).reshape(shards, count, size, *inner)
  batches = parts.swapaxes(0, 1).reshape(count, shards * size, *inner)
  out = jax.lax.map(function, batches)  # (count, shards size, ...)
  inner = out.shape[2:]
  out = out.reshape(count, shards, size, *inner).swapaxes(0, 1)
  return out.reshape(shards, count * size, *inner)[:, :rows].reshape(shards * rows, *inner)
