"""A prepared image set: one memory-mapped array of pixels, one of labels, and a description.

DIR/NAME-SIZE-FINGERPRINT/
  images.npy   (N, H, W, C) uint8: the training images, then the held-out ones
  labels.npy   (N,) int32
  meta.json    what it is made of, and how; digests of images.npy, 16 MiB at a time
The fingerprint is that of the content: equal sets have equal ones wherever and whenever they were made.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files
from diffusion_jax.runtime.patience import progress

CHUNK_BYTES = 16 * 2**20
QUICK_CHUNKS = 16
SPLITS = ('train', 'holdout')
VERSION = 1  # The format of meta.json.
LATENTS = 'latents-'  # Folders that lie in that of their images begin with it.


def open_split(folder: Path, meta: Mapping[str, Any], split: str) -> Arrays:
  """Opens split 'train' or 'holdout' of a set whose files were verified."""
  part = slice(0, meta['num_train'])
  if split == 'holdout':
    part = slice(meta['num_train'], meta['num_train'] + meta['num_holdout'])
  images = np.asarray(np.load(folder / 'images.npy', mmap_mode='r'))
  labels = np.load(folder / 'labels.npy')
  fingerprint, names = f'{meta["fingerprint"]}-{split}', tuple(meta['label_names'])
  return Arrays(images[part], fingerprint, labels[part], names)


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
  """Writes meta.json with its own digest, in one step; it makes a folder a prepared set."""
  files.write_json(folder / 'meta.json', files.sealed(meta))


def read_meta(folder: Path) -> dict[str, Any]:
  """Reads meta.json. Raises: DamagedError if it is not what was written."""
  path = folder / 'meta.json'
  try:
    meta = json.loads(path.read_text())
    whole = files.sealed(meta)['digest'] == meta.pop('digest')
  except (*files.NOT_JSON, KeyError, TypeError, AttributeError) as error:
    reason = 'missing' if isinstance(error, FileNotFoundError) else f'damaged ({error!r})'
    raise DamagedError(f'{path}: {reason}; {meta_remedy(folder)}') from error
  if not whole:
    raise DamagedError(
      f'{path}: damaged (does not agree with its own digest); {meta_remedy(folder)}'
    )
  if meta['version'] != VERSION:
    raise InputError(
      f'{path}: of format {meta["version"]}, this program reads {VERSION}; {remedy(folder)}'
    )
  return meta


def remedy(folder: Path) -> str:
  """Says what to do about a damaged set."""
  return f'delete {folder} and run --mode=prepare again'


def meta_remedy(folder: Path) -> str:
  """Says what to do about a set, or latents, whose description is damaged."""
  if folder.name.startswith(LATENTS):
    return (
      'the latents themselves may be whole, but nothing else tells of which images they are. Put a '
      f'copy of meta.json back, or move {folder} away, and --mode=prepare encodes again'
    )
  return (
    'the images themselves may be whole. Run --mode=prepare with a workdir that prepared or used this '
    'set (its data.json describes it): that rebuilds meta.json; or put a copy of it back; or move '
    f'{folder} away, and --mode=prepare begins anew'
  )


def rebuilt_meta(folder: Path, described: Mapping[str, Any]) -> dict[str, Any] | None:
  """Rebuilds the description that `folder` lacks from a work directory's data.json and the arrays.

  None if they do not have the fingerprint that the folder is named by: that is proof of every pixel,
  label and name.
  """
  try:
    meta = {**{key: described[key] for key in described if key != 'digest'}, **digests_of(folder)}
    proven = meta['fingerprint'] == fingerprint_of(meta) == folder.name.rsplit('-', 1)[-1]
    return meta if proven and meta['version'] == VERSION else None
  except (OSError, KeyError, TypeError):
    return None


def digests_of(folder: Path) -> dict[str, Any]:
  """Computes the entries of meta.json by which the arrays are verified."""
  images = folder / 'images.npy'
  return {
    'images_bytes': images.stat().st_size,
    'labels_digest': hashlib.sha256((folder / 'labels.npy').read_bytes()).hexdigest(),
    'chunk_digests': chunk_digests(images),
  }


def fingerprint_of(meta: Mapping[str, Any]) -> str:
  """Digests all that a run can see of the set to 16 hexadecimal digits."""
  seen = [meta[key] for key in ('image_shape', 'num_train', 'num_holdout', 'resize')]
  seen += [meta['label_ids'], meta['label_names'], meta['labels_digest'], meta['chunk_digests']]
  return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def verify(folder: Path, meta: Mapping[str, Any], *, full: bool) -> None:
  """Verifies sizes, labels, and the digests of all of images.npy or (not full) of 16 chunks spread over it.

  Raises: DamagedError that names the file.
  """
  verify_labels(folder, meta)
  verify_file(folder / 'images.npy', meta['images_bytes'], meta['chunk_digests'], full)


def verify_labels(folder: Path, meta: Mapping[str, Any]) -> None:
  """Raises: DamagedError if labels.npy is not what was written."""
  path = folder / 'labels.npy'
  try:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as error:
    raise DamagedError(f'{path}: {error.strerror}; {remedy(folder)}') from error
  if found != meta['labels_digest']:
    raise DamagedError(f'{path}: not what was written; {remedy(folder)}')


def verify_file(path: Path, size: int, expected: list[str], full: bool) -> None:
  """Verifies the size and chunk digests of one array of a set, all of them or (not full) 16.

  Raises: DamagedError that names the file.
  """
  try:
    found_size = path.stat().st_size
  except OSError as error:
    raise DamagedError(f'{path}: {error.strerror}; {remedy(path.parent)}') from error
  if found_size != size:
    raise DamagedError(f'{path}: {found_size:,} bytes, expected {size:,}; {remedy(path.parent)}')
  chosen = range(len(expected))
  if not full:
    chosen = np.unique(np.linspace(0, len(expected) - 1, QUICK_CHUNKS).round().astype(int))
  found = chunk_digests(path, chosen)
  wrong = [number for number, digest in zip(chosen, found) if digest != expected[number]]
  if wrong:
    raise DamagedError(
      f'{path}: {len(wrong)} of {len(found)} parts of 16 MiB are not what was written (first at '
      f'byte {wrong[0] * CHUNK_BYTES:,}); {remedy(path.parent)}'
    )


def chunk_digests(path: Path, numbers: range | np.ndarray | None = None) -> list[str]:
  """Digests the chunks of a file with these numbers, or all, by as many threads as there are cores."""
  if numbers is None:
    numbers = range(-(-path.stat().st_size // CHUNK_BYTES))

  def digest(number: int) -> str:
    with open(path, 'rb') as file:
      file.seek(int(number) * CHUNK_BYTES)
      return hashlib.sha256(file.read(CHUNK_BYTES)).hexdigest()[:16]

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = pool.map(digest, numbers)
    return list(progress(digests, 'verifying', len(numbers), unit='part', leave=False))
