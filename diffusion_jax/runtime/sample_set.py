"""A sample set on disk: numbered images in parts, and what they depend on.

FOLDER/part-*.npz hold images uint8 NHWC, labels and index; meta.json the identity.
"""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import DamagedError, InputError


def claim(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """The folder's meta.json, written if it is new.

  Raises: InputError if the folder holds another set, DamagedError if meta.json is not readable.
  """
  path = folder / 'meta.json'
  folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    write_json(path, {'identity': wanted})
  meta = read_meta(folder)
  require_same(folder, meta['identity'], wanted)
  return meta


def read_meta(folder: Path) -> dict[str, Any]:
  """meta.json of a sample set. Raises: DamagedError if it is not readable."""
  path = folder / 'meta.json'
  try:
    meta = json.loads(path.read_text())
    return {**meta, 'identity': dict(meta['identity'])}
  except (OSError, ValueError, KeyError, TypeError) as error:
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


def save_part(folder: Path, index: np.ndarray, made: np.ndarray, labels: np.ndarray) -> None:
  """part-INDEX.npz, named by its first sample, written beside and renamed."""
  if not len(index):
    return
  path = folder / f'part-{index[0]:08d}.npz'
  temporary = path.with_suffix('.tmp')
  with open(temporary, 'wb') as file:
    np.savez(file, images=made, labels=labels, index=index)
  os.replace(temporary, path)


def stored_indices(folder: Path) -> np.ndarray:
  """The numbers of the samples that are there, sorted."""
  found = [_read(path)['index'] for path in sorted(folder.glob('part-*.npz'))]
  return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)


def load(folder: Path, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples 0..num_samples - 1 in order: images (N,H,W,C) uint8, labels (N,) int32.

  Raises: InputError if some are missing, DamagedError if a part is not readable.
  """
  parts = [_read(path) for path in sorted(folder.glob('part-*.npz'))]
  index = np.concatenate([part['index'] for part in parts]) if parts else np.zeros(0, int)
  order = np.argsort(index)
  if not np.array_equal(index[order][:num_samples], np.arange(num_samples)):
    raise InputError(f'{folder}: {len(index)} samples, {num_samples} wanted; run --mode=sample')
  chosen = order[:num_samples]
  made, labels = (np.concatenate([part[name] for part in parts]) for name in ('images', 'labels'))
  return made[chosen], labels[chosen]


def _read(path: Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in ('images', 'labels', 'index')}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
    raise DamagedError(f'{path}: damaged ({error}); delete it and run --mode=sample') from error


def write_json(path: Path, content: dict[str, Any]) -> None:
  """Indented, written beside and renamed."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(content, indent=2) + '\n')
  os.replace(temporary, path)
