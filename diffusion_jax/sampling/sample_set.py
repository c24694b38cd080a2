"""A sample set on disk: numbered images in parts, and what they depend on.

FOLDER/part-*.npz hold images uint8 NHWC, labels and index; meta.json the identity. Which samples a part
holds does not matter, so that several hosts can write at once.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files
from diffusion_jax.runtime.patience import progress
from diffusion_jax.types import element_of

AT_ONCE = 64  # Images, when all are read.
KEPT_PARTS = 2  # The picture's, which holds samples of many places, and the most recent one.
# Entries of an identity that come from the checkpoint: sets of two checkpoints differ in these alone.
OF_CHECKPOINT = ('step', 'parameters', 'latent_shift', 'latent_scale')


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """Samples 0..N-1 of a set as a DataSource that holds no more than two parts in memory.

  part, row: (N,) int, where each sample lies. labels: (N,) int32. shape: (H, W, C).
  read_part: number of a part -> its images.
  """

  part: np.ndarray
  row: np.ndarray
  labels: np.ndarray
  shape: tuple[int, int, int]
  read_part: Callable[[int], np.ndarray]
  label_names: Sequence[str] = ()

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return element_of(self.shape)

  @functools.cached_property
  def fingerprint(self) -> str:
    """16 hexadecimal digits of all images in order, and of the labels."""
    digest = hashlib.sha256(repr(self.shape).encode())
    with progress(None, 'verifying', self.num_examples) as bar:
      for start in range(0, self.num_examples, AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, self.num_examples))
        digest.update(self.read(index)['image'])
        bar.update(len(index))
    digest.update(self.labels)
    return digest.hexdigest()[:16]

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """indices (n,) -> image (n, H, W, C) uint8, label (n,) int32. Quick if they ascend.

    Raises: DamagedError if a part is not readable.
    """
    indices = np.asarray(indices)
    images = np.empty((len(indices), *self.shape), np.uint8)
    parts = self.part[indices]
    for number in np.unique(parts):
      chosen = parts == number
      images[chosen] = self.read_part(int(number))[self.row[indices[chosen]]]
    return {'image': images, 'label': self.labels[indices]}


def open_set(folder: Path, num_samples: int) -> Stored:
  """Samples 0..num_samples - 1, each part read once, so that what is given can be trusted.

  Raises: InputError if some are missing, DamagedError if a part is not readable.
  """
  stored = open_parts(folder, num_samples)
  _ = stored.fingerprint
  return stored


def open_parts(folder: Path, num_samples: int) -> Stored:
  """The same without reading the images: a damaged part is noticed when it is read."""
  paths, lengths = _parts(folder), []
  part, row = np.full(num_samples, -1), np.zeros(num_samples, int)
  labels = np.zeros(num_samples, np.int32)
  for number, path in enumerate(paths):
    content = _read(path, 'index', 'labels')
    index = content['index']
    if index.ndim != 1 or index.dtype.kind not in 'iu' or content['labels'].shape != index.shape:
      raise _damaged(path, 'index and labels that do not fit each other')
    lengths.append(len(index))
    rows = np.flatnonzero(index < num_samples)
    part[index[rows]], row[index[rows]] = number, rows
    labels[index[rows]] = content['labels'][rows]
  found = np.count_nonzero(part >= 0)
  if found < num_samples:
    raise InputError(
      f'{folder}: {found:,} of {num_samples:,} samples; finish it with the same command and '
      '--mode=sample'
    )
  shape = _read(paths[part.max()], 'images')['images'].shape[1:]

  @functools.lru_cache(KEPT_PARTS)
  def read_part(number: int) -> np.ndarray:
    images = _read(paths[number], 'images')['images']
    if images.shape != (lengths[number], *shape) or images.dtype != np.uint8 or len(shape) != 3:
      expected = f'uint8 {(lengths[number], *shape)}'
      raise _damaged(paths[number], f'images {images.dtype} {images.shape}, expected {expected}')
    return images

  return Stored(part, row, labels, shape, read_part)


def stored_indices(folder: Path) -> np.ndarray:
  """The numbers of the samples that are there, sorted. Raises: DamagedError as open_parts."""
  found = [_read(path, 'index')['index'] for path in _parts(folder)]
  return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)


def _parts(folder: Path) -> list[Path]:
  return sorted(folder.glob('part-*.npz'))


def _read(path: Path, *names: str) -> dict[str, np.ndarray]:
  """Only these arrays are read; a file that lost its end is noticed all the same."""
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in names}
  except files.UNREADABLE as error:
    raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DamagedError:
  return DamagedError(f'{path}: damaged ({why}); delete it and run --mode=sample')


def save_part(folder: Path, index: np.ndarray, made: np.ndarray, labels: np.ndarray) -> None:
  """part-INDEX.npz, named by its first sample, written beside and renamed."""
  if not len(index):
    return
  files.write_npz(folder / _part_name(index), images=made, labels=labels, index=index)


def _part_name(index: np.ndarray) -> str:
  return f'part-{index[0]:08d}.npz'


def read_some(folder: Path, wanted: np.ndarray) -> dict[str, np.ndarray]:
  """Those of the samples `wanted` that are there: index (n,) ascending, image (n, H, W, C), label (n,).

  Nothing if there are none. Raises: DamagedError as open_parts.
  """
  found: dict[int, tuple[np.ndarray, int]] = {}
  for path in _parts(folder):
    rows = np.flatnonzero(np.isin(_read(path, 'index')['index'], wanted))
    if len(rows):
      content = _read(path, 'index', 'images', 'labels')
      for row in rows:
        found[int(content['index'][row])] = content['images'][row], int(content['labels'][row])
  if not found:
    return {}
  index = np.array(sorted(found), np.uint32)
  images, labels = zip(*(found[number] for number in index.tolist()))
  return {'index': index, 'image': np.stack(images), 'label': np.array(labels, np.int32)}


def keep_only(folder: Path, wanted: np.ndarray) -> None:
  """Deletes all samples but these, in an order that can be gone on with after an interruption."""
  kept = read_some(folder, wanted)
  if kept:
    save_part(folder, kept['index'], kept['image'], kept['label'])
  name = _part_name(kept['index']) if kept else ''
  for path in _parts(folder):
    if path.name != name:
      path.unlink()


def claim(folder: Path, wanted: dict[str, Any]) -> None:
  """Writes the folder's meta.json if it is new.

  Raises: InputError if the folder holds another set, DamagedError if meta.json is not readable, or is
  missing beside parts.
  """
  path = folder / 'meta.json'
  folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    if _parts(folder):
      raise DamagedError(f'{path}: missing, but there are parts of a set; delete {folder}')
    files.write_json(path, files.sealed({'identity': wanted}))
  require_same(folder, read_meta(folder)['identity'], wanted)


def place(base: Path, wanted: dict[str, Any]) -> Path:
  """The folder of a set of these parameters: `base`, or where that holds a set of others, beside it.

  Beside it is BASE-stepSTEP or, where the same step was reached twice, BASE-stepSTEP-PARAMETERS.
  Raises: InputError if a set on the way differs in more than the parameters.
  """
  beside = base.with_name(f'{base.name}-step{wanted["step"]}')
  folders = [base, beside, beside.with_name(f'{beside.name}-{wanted["parameters"]}')]
  taken = [folder for folder in folders if (folder / 'meta.json').exists()]
  settings = {key: value for key, value in wanted.items() if key not in OF_CHECKPOINT}
  for folder in taken:
    found = read_meta(folder)['identity']
    require_same(folder, found, settings)
    if all(found.get(key) == wanted[key] for key in OF_CHECKPOINT if key in wanted):
      return folder
  if taken == folders:
    raise InputError(f'{folders[-1]}: holds another set than its name says; delete it')
  return next(folder for folder in folders if folder not in taken)


def of_step(base: Path, step: int) -> list[Path]:
  """Lists the sets that `place` gave this step, whatever their parameters."""
  beside = f'{base.name}-step{step}'
  paths = [base, *sorted(base.parent.glob(beside)), *sorted(base.parent.glob(f'{beside}-*'))]
  found = [path for path in paths if (path / 'meta.json').exists()]
  return [path for path in found if read_meta(path)['identity'].get('step') == step]


def origin(identity: dict[str, Any]) -> str:
  """'step 500 (averaged parameters 1a2b3c4d)'"""
  kind = 'averaged' if identity['average'] else 'raw'
  return f'step {identity["step"]} ({kind} parameters {identity["parameters"]})'


def read_meta(folder: Path) -> dict[str, Any]:
  """Reads meta.json of a sample set. Raises: DamagedError if it is not what was written."""
  path = folder / 'meta.json'
  try:
    meta = files.unsealed({**json.loads(path.read_text())})
    return {**meta, 'identity': {**meta['identity']}}  # Both must be objects.
  except (*files.NOT_JSON, KeyError, TypeError) as error:
    raise DamagedError(f'{path}: not a sample set description; delete {folder}') from error


def require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises: InputError that names every entry of `wanted` that the set has otherwise."""
  differing = [key for key in wanted if found.get(key) != wanted[key]]
  if differing:
    lines = [f'  {key}: {found.get(key)!r}, asked {wanted[key]!r}' for key in differing]
    raise InputError(
      f'{folder} holds a set that was made otherwise:\n' + '\n'.join(lines) + '\n'
      'choose another --config.sample.name, or delete the folder'
    )
