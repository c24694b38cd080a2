"""Images -> features: compiled once, over all devices of all hosts, kept where they can be found again."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax.errors import DamagedError
from diffusion_jax.evaluation.types import FeatureNetwork, FeatureSet
from diffusion_jax.models.latents import in_batches
from diffusion_jax.runtime import files
from diffusion_jax.runtime import mesh as devices
from diffusion_jax.runtime.patience import alive, progress
from diffusion_jax.types import Array, DataSource

FIELDS = ('features', 'logits', 'labels')  # The arrays that a cache holds.
IN_FLIGHT = 2  # Batches.


def num_features(network: FeatureNetwork, image_shape: tuple[int, int, int]) -> int:
  """D, without computing any."""
  image = jax.ShapeDtypeStruct((1, *image_shape), np.uint8)
  return jax.eval_shape(network.apply, network.params, image)[0].shape[-1]


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """batch_size: of one device, so that its arithmetic does not depend on how many there are."""

  network: FeatureNetwork
  mesh: Mesh
  batch_size: int

  @functools.cached_property
  def apply(self) -> Callable[[Array, Array], FeatureSet]:
    """images (B,H,W,C) uint8 on the devices, labels (B,) -> FeatureSet, a copy on each of them."""
    shards, copies = devices.batch_shards(self.mesh), devices.replicated(self.mesh)
    params = devices.to_devices(self.network.params, copies)

    def joined(params, images):
      outputs = [x for x in self.network.apply(params, images) if x is not None]
      return jnp.concatenate(outputs, axis=1)

    @functools.partial(jax.jit, out_shardings=copies)
    def apply(params, images, labels):
      one = functools.partial(joined, params)
      outputs = in_batches(one, images, batch_size=self.batch_size, shards=shards)
      size = num_features(self.network, images.shape[1:])
      logits = outputs[:, size:] if outputs.shape[1] > size else None
      return FeatureSet(outputs[:, :size], logits, labels)

    return functools.partial(apply, params)

  def __call__(
    self, source: DataSource, indices: np.ndarray, cache: Path | None = None
  ) -> FeatureSet:
    """Features, logits and labels of the images `indices` of a source, in that order, on every host.

    cache: a folder; what it holds of these images by this network is read instead, if it is whole, and
    what an interruption left is gone on with.
    Raises: DamagedError for features that are not finite, OSError that names a file.
    """
    path = cache and cache / f'{self.identity(source, indices)}.npz'
    found = path and _read(path, len(indices))
    if not found:
      found = self._extract(source, indices, path and path.with_suffix('.part.npz'))
      if not _is_finite(found):  # Only broken weights make that of images.
        raise DamagedError(f'{self.network.name}: features not finite; its weights are damaged')
      if path and jax.process_index() == 0:
        _write(path, found)
        path.with_suffix('.part.npz').unlink(missing_ok=True)
    return found

  def identity(self, source: DataSource, indices: np.ndarray) -> str:
    """The name of a cached file: a function of all that its content depends on."""
    network = self.network
    text = f'{network.name} {network.digest} {network.resize} {source.fingerprint}'
    digest = hashlib.sha256(text.encode() + np.asarray(indices, np.int64).tobytes())
    return f'{network.name}-{digest.hexdigest()[:16]}'

  def _extract(self, source: DataSource, indices: np.ndarray, kept: Path | None) -> FeatureSet:
    """kept: a file for what is done when this is interrupted, and for what was done before."""
    alone = kept if jax.process_count() == 1 else None  # Several hosts would have to agree.
    before = alone and _read(alone)
    done = [before] if before else []
    size = self.batch_size * devices.batch_shards(self.mesh)
    rows, sharding = devices.local_rows(self.mesh, size), devices.batch_sharding(self.mesh)
    parts: list[tuple[FeatureSet, int]] = []
    first = len(before.features) if before else 0
    what, hidden = f'{self.network.name} features', jax.process_index() > 0
    try:
      with progress(None, what, len(indices), initial=first, disable=hidden) as bar:
        for start in range(first, len(indices), size):
          chosen = indices[start : start + size]
          padded = np.pad(chosen, (0, size - len(chosen)), 'edge')  # One shape, one compilation.
          batch = devices.to_devices(source.read(padded[rows]), sharding)
          with alive(f'compiling {self.network.name}') if not parts else contextlib.nullcontext():
            parts.append((self.apply(batch['image'], batch['label']), len(chosen)))
          if len(parts) > IN_FLIGHT:  # Work is handed over ahead, but not more than fits.
            jax.block_until_ready(parts[-1 - IN_FLIGHT][0])
          bar.update(len(chosen))
    except KeyboardInterrupt:
      if alone and parts:
        _write(alone, _joined([*done, fetched(parts)]))
      raise
    return _joined([*done, fetched(parts)] if parts else done)


def fetched(parts: Sequence[tuple[FeatureSet, int]]) -> FeatureSet:
  """One set of the first images of each (set on the devices, how many of it)."""
  return _joined(
    [[None if x is None else x[:n] for x in jax.device_get(found)[:3]] for found, n in parts]
  )


def _joined(sets: Sequence[Sequence[np.ndarray | None]]) -> FeatureSet:
  """The images of several sets (features, logits, labels, ...) in one."""
  fields = list(zip(*sets))[:3]
  return FeatureSet(*(None if x[0] is None else np.concatenate(x) for x in fields))


def _is_finite(found: FeatureSet) -> bool:
  return all(x is None or np.isfinite(x).all() for x in (found.features, found.logits))


def _digest(found: FeatureSet) -> str:
  """SHA-256 of the arrays, their types and shapes."""
  digest = hashlib.sha256()
  for name, x in zip(FIELDS, found):
    if x is not None:
      digest.update(f'{name} {x.dtype} {x.shape} '.encode())
      digest.update(np.ascontiguousarray(x))
  return digest.hexdigest()


def _read(path: Path, count: int | None = None) -> FeatureSet | None:
  """Reads the kept features of `count` images, or returns None; names a file that is not usable."""
  try:
    with np.load(path, allow_pickle=False) as file:
      found = FeatureSet(**{name: file.get(name) for name in FIELDS})
      digest = str(file['digest']) if 'digest' in file else None
    lengths = {len(x) for x in found if x is not None}
  except FileNotFoundError:
    return None
  except files.UNREADABLE as error:
    problem = f'damaged ({error or type(error).__name__})'
  else:
    if digest is None:
      problem = 'no digest, so of an earlier version or not ours'
    elif digest != _digest(found):
      problem = 'damaged (other content than its digest says)'
    elif found.features is None or len(lengths) != 1 or lengths != {count or len(found.features)}:
      problem = f'{sorted(lengths)} images, expected {count}'
    elif not _is_finite(found):
      problem = 'values that are not finite'
    else:
      return found
  print(f'{path}: {problem}; the features are computed again', flush=True)
  return None


def _write(path: Path, found: FeatureSet) -> None:
  """Raises: OSError that names the file."""
  kept = {name: x for name, x in zip(FIELDS, found) if x is not None}
  files.write_npz(path, digest=_digest(found), **kept)
