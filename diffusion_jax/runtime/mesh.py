"""Arranges the devices in one mesh and says which part of every array each of them holds."""

import functools
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from diffusion_jax.runtime import presets
from diffusion_jax.types import Array, PyTree

AXES = ('data', 'fsdp', 'tensor')
Rules = Sequence[tuple[str, Sequence]]


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
  """Arranges all devices of all hosts as (data, fsdp, tensor); one size may be -1 for the rest.

  Raises: ValueError if the sizes do not multiply to the number of devices.
  """
  count, sizes = jax.device_count(), [data, fsdp, tensor]
  known = int(np.prod([size for size in sizes if size != -1]))
  if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
    raise ValueError(f'got {tuple(sizes)}, allowed positive sizes and at most one -1')
  if -1 in sizes and count % known == 0:
    sizes[sizes.index(-1)] = count // known
  if -1 in sizes or np.prod(sizes) != count:
    raise ValueError(
      f'got {(data, fsdp, tensor)}, allowed sizes whose product is the {count} devices'
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def local_mesh() -> Mesh:
  """Arranges the devices of this process alone, all along `data`: for work without the others."""
  devices = np.asarray(jax.local_devices()).reshape(-1, 1, 1)
  return Mesh(devices, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def within(mesh: Mesh, traced: Callable) -> Callable:
  """Returns `traced`, called under jit, with the mesh set for constraints on activations."""

  @functools.wraps(traced)
  def call(*args, **options):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return traced(*args, **options)

  return call


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Shards the leading axis over all devices that do not share a tensor."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def stacked_sharding(mesh: Mesh) -> NamedSharding:
  """Shards the second axis as batch_sharding does the first, for batches of several steps."""
  return NamedSharding(mesh, PartitionSpec(None, ('data', 'fsdp')))


def batch_shards(mesh: Mesh) -> int:
  """Returns the number of parts that a batch is cut into."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def replicated(mesh: Mesh) -> NamedSharding:
  """Places a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def path_name(path: tuple) -> str:
  """Formats a pytree path as 'params/blocks/qkv/kernel', the form that the rules match."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def state_shardings(state: PyTree, mesh: Mesh, rules: Rules, preset: str = '') -> PyTree:
  """Returns the sharding of every array of `state`: that of the first rule found in the array's path.

  state: arrays or ShapeDtypeStructs. rules: (regular expression, one axis name, tuple of names or
  '' a dimension). preset: of presets.py, for arrays that no rule matches. Scalars are replicated.
  Raises: ValueError for a rule that does not fit an array that it matches.
  """

  def shard(path, leaf):
    name = path_name(path)
    axes = next((axes for pattern, axes in rules if re.search(pattern, name)), None)
    if axes is None and preset:
      return NamedSharding(mesh, presets.spec_of(preset, name, leaf.shape, mesh.shape))
    if not leaf.shape or not axes:
      return replicated(mesh)
    if len(axes) > len(leaf.shape):
      raise ValueError(f'rules: {axes} names more dimensions than {name} {leaf.shape} has')
    spec = PartitionSpec(*(axis or None for axis in axes))
    for size, axis in zip(leaf.shape, spec):
      names = (axis,) if isinstance(axis, str) else (axis or ())
      parts = int(np.prod([mesh.shape[name] for name in names]))
      if size % parts:
        raise ValueError(f'rules: {axes} cuts a dimension of {name} {leaf.shape} into {parts}')
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(shard, state)


def round_up(size: int, mesh: Mesh) -> int:
  """Returns the next batch size that the mesh can cut into equal parts."""
  shards = batch_shards(mesh)
  return -(-size // shards) * shards


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """Returns the rows of a global batch that this host's devices hold, in order; on one host, all rows."""
  parts = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[part] for part in parts]))


def to_devices(batch: PyTree, sharding: NamedSharding) -> PyTree:
  """Makes global arrays from this host's rows of a batch (NumPy)."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def to_host(x: Array, mesh: Mesh) -> np.ndarray:
  """Gathers an array that is sharded over the devices of all hosts, on every host."""
  return jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(mesh))(x))
