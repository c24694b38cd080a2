"""Sharding presets: how every array of a training state is cut, without rules of the user's.

  replicated   every device holds everything; a batch is cut over all of them
  fsdp         kernels and tables are cut over all devices, and gathered where they are used
  fsdp_tensor  the same, and attention heads and hidden channels are cut over `tensor` (Shoeybi et al.
               2019, arXiv:1909.08053, Section 3): each block then adds two sums over activations

Averages and optimizer states are cut as the parameters that they belong to: their paths end alike. Biases and
norms are a thousandth of the bytes and stay whole under fsdp.
"""

import math
import re
from collections.abc import Mapping

from jax.sharding import PartitionSpec

# (data, fsdp, tensor); -1 takes the devices that are left.
SIZES = {'replicated': (-1, 1, 1), 'fsdp': (1, -1, 1), 'fsdp_tensor': (1, -1, 2)}
STACKED = '/blocks/'  # Scanned over the first dimension, which therefore stays whole.
CUT = re.compile(r'/(kernel|embedding)$')
RESIDUAL = r'/[^/]*(residual|down_|up_)[^/]*'
# The dimension, from the end, that holds heads or hidden channels: cut where they are made, and where
# they are summed up again.
TENSOR = (
  (re.compile(r'/qkv/(kernel|bias)$'), -2),
  (re.compile(r'_attention/out/kernel$|/(attention|mlp)_out/kernel$'), -2),
  (re.compile(r'/mlp_in/(kernel|bias)$'), -1),
  (re.compile(rf'{RESIDUAL}/conv_in/(kernel|bias)$'), -1),
  (re.compile(rf'{RESIDUAL}/norm_out/(scale|bias)$'), -1),
  (re.compile(rf'{RESIDUAL}/conv_out/kernel$'), -2),
)


def sizes(preset: str, given: tuple[int, int, int]) -> tuple[int, ...]:
  """Returns the sizes of (data, fsdp, tensor): the given ones, and the preset's where 0 is given.

  One axis takes the devices that are left: the one that is given as -1, the preset's, or data.
  """
  own = [1 if size == -1 and -1 in given else size for size in SIZES[preset]]
  found = [size or preset_size for size, preset_size in zip(given, own)]
  if -1 not in found and not given[0]:
    found[0] = -1
  return tuple(found)


def spec_of(
  preset: str, path: str, shape: tuple[int, ...], axes: Mapping[str, int]
) -> PartitionSpec:
  """Returns how a preset cuts the array of this path and shape, over axes of these sizes.

  What an axis does not divide stays whole along it.
  """
  cut: list[str | tuple[str, ...] | None] = [None] * len(shape)
  if preset == 'fsdp_tensor':
    for pattern, dimension in TENSOR:
      fits = len(shape) >= -dimension and shape[dimension] % axes['tensor'] == 0
      if fits and pattern.search(path):
        cut[dimension] = 'tensor'
  if preset in ('fsdp', 'fsdp_tensor') and CUT.search(path):
    free = [i for i in range(1 if STACKED in path else 0, len(shape)) if not cut[i]]
    both = preset == 'fsdp_tensor' and 'tensor' not in cut
    for names in (('fsdp', 'tensor'), 'fsdp') if both else ('fsdp',):
      parts = math.prod(axes[name] for name in ([names] if isinstance(names, str) else names))
      fitting = [i for i in free if shape[i] % parts == 0]
      if fitting:
        cut[max(fitting, key=lambda i: shape[i])] = names
        break
  return PartitionSpec(*cut)
