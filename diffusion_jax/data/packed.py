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
from tqdm import tqdm

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import DamagedError, InputError

CHUNK_BYTES = 16 * 2**20
QUICK_CHUNKS = 16
SHOWN_CHUNKS = 64  # 1 GiB: from here on, reading them is shown.
SPLITS = ('train', 'holdout')
VERSION = 1  # Of meta.json.


def open_split(folder: Path, meta: Mapping[str, Any], split: str) -> Arrays:
  """split 'train' or 'holdout' of a set whose files were verified."""
  part = slice(0, meta['num_train'])
  if split == 'holdout':
    part = slice(meta['num_train'], meta['num_train'] + meta['num_holdout'])
  images = np.asarray(np.load(folder / 'images.npy', mmap_mode='r'))
  labels = np.load(folder / 'labels.npy')
  fingerprint, names = f'{meta["fingerprint"]}-{split}', tuple(meta['label_names'])
  return Arrays(images[part], fingerprint, labels[part], names)


def write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
  """meta.json with its own digest, written beside and renamed: a set is one once it has it."""
  meta = {key: meta[key] for key in meta if key != 'digest'}
  temporary = folder / 'meta.tmp'
  with open(temporary, 'w') as file:
    file.write(json.dumps({**meta, 'digest': _digest(meta)}, indent=1) + '\n')
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, folder / 'meta.json')


def read_meta(folder: Path) -> dict[str, Any]:
  """meta.json. Raises: DamagedError if it is not what was written."""
  path = folder / 'meta.json'
  try:
    meta = json.loads(path.read_text())
    whole = meta.pop('digest') == _digest(meta)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DamagedError(f'{path}: damaged ({error!r}); {remedy(folder)}') from error
  if not whole:
    raise DamagedError(f'{path}: does not agree with its own digest; {remedy(folder)}')
  if meta['version'] != VERSION:
    raise InputError(
      f'{path}: of format {meta["version"]}, this program reads {VERSION}; {remedy(folder)}'
    )
  return meta


def _digest(meta: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def remedy(folder: Path) -> str:
  """What to do about a damaged set."""
  return f'delete {folder} and run --mode=prepare again'


def fingerprint_of(meta: Mapping[str, Any]) -> str:
  """16 hexadecimal digits of all that a run can see of the set."""
  seen = [meta[key] for key in ('image_shape', 'num_train', 'num_holdout', 'resize')]
  seen += [meta['label_ids'], meta['label_names'], meta['labels_digest'], meta['chunk_digests']]
  return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def prepared(folder: Path) -> dict[Path, dict[str, Any]]:
  """Every prepared set below `folder` whose description is whole, with its meta."""
  return {path: meta for path, meta in _scan(folder).items() if isinstance(meta, dict)}


def _scan(folder: Path) -> dict[Path, dict[str, Any] | DamagedError]:
  """Every set below `folder`; a folder that begins with a dot is none yet."""
  found = {}
  if (Path(folder) / 'meta.json').exists():
    raise InputError(
      f'config.data.dir: {folder} is one prepared set; give the folder that holds it: '
      f'{Path(folder).parent}'
    )
  for path in sorted(Path(folder).glob('[!.]*/meta.json')):
    try:
      found[path.parent] = read_meta(path.parent)
    except DamagedError as error:
      found[path.parent] = error
  return found


def matching(
  folder: Path, recipe: Mapping[str, Any], fingerprint: str
) -> dict[Path, dict[str, Any]]:
  """The sets made by `recipe`, or those of `fingerprint` (and the same shape) if one is given."""

  def fits(meta):
    if not fingerprint:
      return dict(recipe) in [made['recipe'] for made in meta['made']]
    side, channels = recipe['image_size'], recipe['channels']
    return meta['fingerprint'] == fingerprint and meta['image_shape'] == [side, side, channels]

  return {path: meta for path, meta in prepared(folder).items() if fits(meta)}


def find(folder: Path, recipe: Mapping[str, Any], fingerprint: str) -> tuple[Path, dict[str, Any]]:
  """The one set that matches.

  Raises: InputError if there is none, or several; it says what is there and what differs.
  DamagedError if there is none, but a damaged one.
  """
  found = matching(folder, recipe, fingerprint)
  if len(found) == 1:
    return next(iter(found.items()))
  wanted = f'with fingerprint {fingerprint}'
  if not fingerprint:
    wanted = (
      f'{recipe["name"]!r}, {recipe["image_size"]} px, {recipe["channels"]} channels, class list '
      f'{recipe["class_list"]!r}'
    )
  if found:
    some = ', '.join(f'{meta["fingerprint"]} ({path.name})' for path, meta in found.items())
    raise InputError(
      f'{folder} holds {len(found)} prepared sets {wanted}: choose one with '
      f'--config.data.fingerprint, of {some}'
    )
  damaged = [error for error in _scan(folder).values() if isinstance(error, DamagedError)]
  if damaged:  # It may be the one.
    raise damaged[0]
  others = prepared(folder).items()
  lines = [f'  {path.name}: {_differences(meta, recipe)}' for path, meta in others]
  raise InputError(
    f'no prepared data {wanted} in {folder}'
    + (', which holds\n' + '\n'.join(lines) + '\n' if lines else '; ')
    + 'run the same command with --mode=prepare and --config.data.source'
  )


def _differences(meta: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
  found = meta['made'][0]['recipe']
  differing = [key for key in recipe if found.get(key) != recipe[key]]
  if not differing:
    return f'of these settings, but fingerprint {meta["fingerprint"]}'
  return ', '.join(f'{key} {found.get(key)!r}, not {recipe[key]!r}' for key in differing)


def verify(folder: Path, meta: Mapping[str, Any], *, full: bool) -> None:
  """Sizes, labels, and the digests of all of images.npy or (not full) of 16 chunks spread over it.

  Raises: DamagedError that names the file.
  """
  verify_labels(folder, meta)
  verify_file(folder / 'images.npy', meta['images_bytes'], meta['chunk_digests'], folder, full)


def verify_labels(folder: Path, meta: Mapping[str, Any]) -> None:
  """Raises: DamagedError if labels.npy is not what was written."""
  path = folder / 'labels.npy'
  try:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as error:
    raise DamagedError(f'{path}: {error.strerror}; {remedy(folder)}') from error
  if found != meta['labels_digest']:
    raise DamagedError(f'{path}: not what was written; {remedy(folder)}')


def verify_file(path: Path, size: int, expected: list[str], folder: Path, full: bool) -> None:
  """Size and chunk digests of one array of `folder`, all of them or (not full) 16.

  Raises: DamagedError that names the file.
  """
  try:
    found_size = path.stat().st_size
  except OSError as error:
    raise DamagedError(f'{path}: {error.strerror}; {remedy(folder)}') from error
  if found_size != size:
    raise DamagedError(f'{path}: {found_size:,} bytes, expected {size:,}; {remedy(folder)}')
  chosen = range(len(expected))
  if not full:
    chosen = np.unique(np.linspace(0, len(expected) - 1, QUICK_CHUNKS).round().astype(int))
  found = chunk_digests(path, chosen)
  wrong = [number for number, digest in zip(chosen, found) if digest != expected[number]]
  if wrong:
    raise DamagedError(
      f'{path}: {len(wrong)} of {len(found)} parts of 16 MiB are not what was written (first at '
      f'byte {wrong[0] * CHUNK_BYTES:,}); {remedy(folder)}'
    )


def chunk_digests(path: Path, numbers: range | np.ndarray | None = None) -> list[str]:
  """Of the chunks of a file, by number, or of all; by as many threads as there are cores."""
  if numbers is None:
    numbers = range(-(-path.stat().st_size // CHUNK_BYTES))

  def digest(number: int) -> str:
    with open(path, 'rb') as file:
      file.seek(int(number) * CHUNK_BYTES)
      return hashlib.sha256(file.read(CHUNK_BYTES)).hexdigest()[:16]

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    digests = pool.map(digest, numbers)
    few = len(numbers) < SHOWN_CHUNKS
    bar = tqdm(digests, desc='verifying', total=len(numbers), unit='part', disable=few, leave=False)
    return list(bar)
