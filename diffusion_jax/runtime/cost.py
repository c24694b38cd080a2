"""Computes what a function costs from its jaxpr, before anything is compiled.

XLA's own count takes the body of a scan once; this one multiplies it by the length. It counts the
floating point operations of matrix products and convolutions, two a multiply-add.
"""

import math
import os
from collections.abc import Callable

import jax

from diffusion_jax.types import PyTree


def flops(function: Callable, *args) -> int:
  """Counts the operations of one call; args may be ShapeDtypeStructs."""
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def num_parameters(params: PyTree) -> int:
  """Counts the entries of all arrays."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def num_bytes(tree: PyTree) -> int:
  """Counts the bytes of all arrays."""
  return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def device_bytes() -> int:
  """Returns the bytes of memory of one local device; on CPU, its share of the host's; 0 if unknown."""
  device = jax.local_devices()[0]
  limit = (device.memory_stats() or {}).get('bytes_limit', 0)
  if limit or device.platform != 'cpu':
    return limit
  try:
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // jax.local_device_count()
  except (ValueError, OSError):
    return 0


def free_bytes() -> int:
  """Returns device_bytes less the arrays that are there, on CPU those of this process; 0 if unknown."""
  device = jax.local_devices()[0]
  stats = device.memory_stats() or {}
  held = sum(
    shard.data.nbytes
    for array in jax.live_arrays()
    for shard in array.addressable_shards
    if shard.device == device
  )
  return max(device_bytes() - stats.get('bytes_in_use', held), 0)


def saved_for_backward(function: Callable, *args) -> int:
  """Counts the bytes that reverse-mode differentiation of function(*args) keeps, arguments included."""
  return num_bytes(jax.eval_shape(lambda *a: jax.vjp(function, *a)[1], *args))


def _count(jaxpr) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      left = equation.invars[0].aval.shape
      depth = math.prod(left[axis] for axis in contracted)
      total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
    elif name == 'conv_general_dilated':
      kernel = equation.invars[1].aval.shape
      out_features = kernel[params['dimension_numbers'].rhs_spec[0]]
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features
    else:
      repeats = params['length'] if name == 'scan' else 1
      total += repeats * sum(_count(inner) for inner in _inner_jaxprs(params))
  return total


def _inner_jaxprs(params: dict):
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if hasattr(item, 'eqns'):
        yield item
      elif hasattr(item, 'jaxpr'):
        yield item.jaxpr
