"""From any form in which people have images to a prepared set (packed.py), once.

list the source -> classes and splits -> a place for every image -> decode -> digests -> rename
"""

import contextlib
import datetime
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import packed, packing, sets
from diffusion_jax.data.decode import RESIZE
from diffusion_jax.data.plan import (
  Plan,
  Recipe,
  contradictions,
  identity_of,
  make_plan,
  substitutes_for,
)
from diffusion_jax.data.readers import open_source
from diffusion_jax.data.readers.base import Entry, Reader
from diffusion_jax.errors import InputError

LISTED = 20  # Bad files in a message.


def prepare(
  source: str,
  recipe: Recipe,
  folder: Path,
  *,
  max_bad_fraction: float,
  workers: int,
  num_classes: int = 0,
) -> tuple[Path, dict[str, Any]]:
  """Makes the set, goes on with it, or finds that it is there. Returns: its folder and meta.

  workers: decoding processes, 0 for one a core. num_classes: as many as it must have, 0 for any.
  Raises: InputError, for what cannot be used or written; DamagedError for a broken archive, or a
  prepared set whose description is damaged and which may be this one.
  """
  recipe.mapping()  # A wrong class list is told before the source is read.
  reader = open_source(source)
  print(f'listing {reader.origin} ({reader.form})', flush=True)
  plan = make_plan(reader, recipe)
  require_classes(num_classes, plan.classes.names, reader.origin)
  identity = identity_of(plan, recipe, reader.origin)
  for path, meta in sets.prepared(folder).items():
    if identity in [made['identity'] for made in meta['made']]:
      packed.verify(path, meta, full=True)
      print(f'{path}: prepared already, and whole')
      return path, meta
  sets.refuse_damaged(folder, {'name': recipe.name, 'image_size': recipe.image_size}, '')
  work = folder / f'.preparing-{identity}'
  try:
    work.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(f'config.data.dir: {work}: {error.strerror}') from error
  others = sorted(path for path in folder.glob('.preparing-*') if path != work)
  for path in others:
    print(f'{path} belongs to another preparation that did not end; delete it if it never will')
  with locked(work):
    try:
      meta = _fill(reader, plan, recipe, identity, work, max_bad_fraction, workers or cores())
    except OSError as error:
      raise packing.disk_error(error, Path(error.filename or work), 0) from error
    target = folder / f'{recipe.name}-{recipe.image_size}-{meta["fingerprint"]}'
    same = [
      path for path, m in sets.prepared(folder).items() if m['fingerprint'] == target.name[-16:]
    ]
    if same:
      return _joined(same[0], meta, work)
    os.replace(work, target)
    packing.sync(folder)
    for name in (packing.JOURNAL, 'lock'):
      (target / name).unlink(missing_ok=True)
  return target, meta


def require_classes(wanted: int, found: Sequence[str], origin: str) -> None:
  """Raises: InputError if a config says another number of classes; 0 says none."""
  if wanted not in (0, len(found)):
    raise InputError(
      f'config.num_classes: got {wanted}, but {origin} has {len(found)} ({", ".join(found[:5])}'
      f'{", ..." if len(found) > 5 else ""}); allowed {len(found)}, 0 (unconditional), or -1: as many '
      'as the data have'
    )


def _joined(path: Path, meta: dict[str, Any], work: Path) -> tuple[Path, dict[str, Any]]:
  """The set that holds the same images already, which is now found under this recipe too."""
  known = packed.read_meta(path)
  packed.verify(path, known, full=True)
  print(f'{path}: the same images are there already, from {known["made"][0]["source"]}')
  known = {**known, 'made': known['made'] + meta['made']}
  with packing.writing(path / 'meta.json'):
    packed.write_meta(path, known)
  (work / packing.JOURNAL).unlink(missing_ok=True)  # First: without pixels it would be a lie.
  shutil.rmtree(work)
  return path, known


def cores() -> int:
  """Those that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


@contextlib.contextmanager
def locked(work: Path) -> Iterator[None]:
  """Holds `work` for this process. Raises: InputError if another one does."""
  with open(work / 'lock', 'w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise InputError(f'{work}: another process is preparing this set; wait for it') from error
    yield


def _fill(
  reader: Reader,
  plan: Plan,
  recipe: Recipe,
  identity: str,
  work: Path,
  max_bad_fraction: float,
  workers: int,
) -> dict[str, Any]:
  """Writes images.npy, labels.npy and meta.json."""
  entries, images = plan.entries, work / 'images.npy'
  target = packing.create_images(images, len(entries), recipe.image_size, recipe.channels)
  journal = packing.Journal(images)

  def check_bad(bad: dict[int, str]) -> None:
    if len(bad) > max_bad_fraction * len(entries):
      raise InputError(too_many_bad(reader.origin, entries, bad, max_bad_fraction))

  bad = packing.pack(
    reader,
    entries,
    target,
    journal,
    known_bad=contradictions(entries),
    check_bad=check_bad,
    workers=workers,
  )
  substitutes = substitutes_for(bad, plan)
  with open(images, 'r+b') as file:
    for row, other in substitutes.items():
      data = os.pread(file.fileno(), target.row_bytes, target.offset + other * target.row_bytes)
      os.pwrite(file.fileno(), data, target.offset + row * target.row_bytes)
  with packing.writing(work / 'labels.npy'):
    np.save(work / 'labels.npy', plan.labels)
  made = {
    'source': reader.origin,
    'form': reader.form,
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'recipe': recipe.mapping(),
    'identity': identity,
  }
  meta = {
    'version': packed.VERSION,
    'name': recipe.name,
    'made': [made],
    'image_shape': [recipe.image_size, recipe.image_size, recipe.channels],
    'resize': RESIZE,
    'num_train': plan.num_train,
    'num_holdout': len(entries) - plan.num_train,
    'label_ids': list(plan.classes.ids),
    'label_names': list(plan.classes.names),
    'images_per_class': images_per_class(plan),
    'label_list': {
      'name': plan.classes.name,
      'digest': plan.classes.digest,
      'order': recipe.label_order,
    },
    'notes': plan.notes,
    'num_enlarged': len(journal.small),
    'bad_files': [
      {
        'file': entries[row].where,
        'reason': why,
        'row': row,
        'shows': entries[substitutes[row]].where,
      }
      for row, why in sorted(bad.items())
    ],
    'mislabelled_files': [
      {'file': entries[row].where, 'reason': why} for row, why in sorted(journal.odd.items())
    ],
    'images_bytes': images.stat().st_size,
    'labels_digest': hashlib.sha256((work / 'labels.npy').read_bytes()).hexdigest(),
    'chunk_digests': packed.chunk_digests(images),
  }
  meta['fingerprint'] = packed.fingerprint_of(meta)
  for name in ('images.npy', 'labels.npy'):
    packing.sync(work / name)
  with packing.writing(work / 'meta.json'):
    packed.write_meta(work, meta)
  return meta


def images_per_class(plan: Plan) -> dict[str, list[int]]:
  """Split -> the number of images of every label."""
  parts = np.split(plan.labels, [plan.num_train])
  counts = (np.bincount(part, minlength=len(plan.classes.ids)).tolist() for part in parts)
  return dict(zip(packed.SPLITS, counts))


def too_many_bad(
  origin: str, entries: Sequence[Entry], bad: dict[int, str], max_bad_fraction: float
) -> str:
  """The message with the bad files found so far."""
  lines = [f'  {entries[row].where}: {why}' for row, why in sorted(bad.items())[:LISTED]]
  more = [f'  and {len(bad) - LISTED} more'] if len(bad) > LISTED else []
  return '\n'.join(
    [
      f'{origin}: {len(bad)} bad files among {len(entries):,} images, more than '
      f'config.data.max_bad_fraction {max_bad_fraction:g} allows (so far):',
      *lines,
      *more,
      'raise the fraction, and the same command goes on; or repair or remove them, and it begins anew',
    ]
  )
