"""Makes a prepared set (packed.py) once from any form in which people have images.

list the source -> classes and splits -> a place for every image -> decode -> digests -> rename
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import packed, packing, sets
from diffusion_jax.data.decode import RESIZE
from diffusion_jax.data.plan import Plan, Recipe, contradictions, make_plan, substitutes_for
from diffusion_jax.errors import InputError, listed
from diffusion_jax.runtime import files, provenance

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
  plan = make_plan(source, recipe)
  require_classes(num_classes, plan.classes.names, plan.reader.origin)
  identity = plan.identity()
  for path, meta in sets.prepared(folder).items():
    if identity in [made['identity'] for made in meta['made']]:
      packed.verify(path, meta, full=True)
      print(f'{path}: prepared already, and whole')
      return path, meta
  sets.refuse_damaged(folder, {'name': recipe.name, 'image_size': recipe.image_size}, '')
  work = folder / f'.preparing-{identity}'
  with files.building(work, len(plan.entries) * recipe.image_size**2 * recipe.channels):
    for path in sorted(path for path in folder.glob('.preparing-*') if path != work):
      print(f'{path} belongs to another preparation that did not end; delete it if it never will')
    meta = _fill(plan, identity, work, max_bad_fraction, workers or cores())
    for path, there in sets.prepared(folder).items():
      if there['fingerprint'] == meta['fingerprint']:
        return path, _joined(path, there, meta, work)
    target = folder / f'{recipe.name}-{recipe.image_size}-{meta["fingerprint"]}'
    files.publish(work, target, packing.JOURNAL)
  return target, meta


def require_classes(wanted: int, found: Sequence[str], origin: str) -> None:
  """Raises: InputError if a config says another number of classes; 0 says none."""
  if wanted not in (0, len(found)):
    raise InputError(
      f'config.num_classes: got {wanted}, but {origin} has {len(found)} ({", ".join(found[:5])}'
      f'{", ..." if len(found) > 5 else ""}); allowed {len(found)}, 0 (unconditional), or -1: as many '
      'as the data have'
    )


def _joined(path: Path, known: dict, made: dict, work: Path) -> dict[str, Any]:
  """Adds this recipe to the meta of the set that holds the same images already."""
  packed.verify(path, known, full=True)
  print(f'{path}: the same images are there already, from {known["made"][0]["source"]}')
  known = {**known, 'made': known['made'] + made['made']}
  packed.write_meta(path, known)
  (work / packing.JOURNAL).unlink(missing_ok=True)  # First: without pixels it would be a lie.
  shutil.rmtree(work)
  return known


def cores() -> int:
  """Counts the cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _fill(
  plan: Plan, identity: str, work: Path, max_bad_fraction: float, workers: int
) -> dict[str, Any]:
  """Writes images.npy, labels.npy and meta.json."""
  reader, entries, recipe, classes = plan.reader, plan.entries, plan.recipe, plan.classes
  shape = (recipe.image_size, recipe.image_size, recipe.channels)
  path = work / 'images.npy'
  images = files.reserved_array(path, (len(entries), *shape), np.uint8, packing.JOURNAL)
  target = packing.Target(str(path), images.offset, recipe.image_size, recipe.channels)
  journal = packing.Journal(path)

  def check_bad(bad: dict[int, str]) -> None:
    if len(bad) > max_bad_fraction * len(entries):
      found = [f'  {entries[row].where}: {why}' for row, why in sorted(bad.items())]
      raise InputError(
        f'{reader.origin}: {len(bad)} bad files among {len(entries):,} images, more than '
        f'config.data.max_bad_fraction {max_bad_fraction:g} allows (so far):\n'
        f'{listed(found, LISTED)}\n'
        'raise the fraction, and the same command goes on; or repair or remove them, and it begins anew'
      )

  known = contradictions(entries)
  bad = packing.pack(
    reader, entries, target, journal, known_bad=known, check_bad=check_bad, workers=workers
  )
  shown = substitutes_for(bad, plan)
  for row, other in shown.items():
    images[row] = images[other]
  images.flush()
  with files.replacing(work / 'labels.npy') as stream:
    np.save(stream, plan.labels)
  made = {
    'source': reader.origin,
    'form': reader.form,
    'time': provenance.now(),
    'recipe': recipe.mapping(),
    'identity': identity,
  }
  files_of = {row: entries[row].where for row in (*bad, *shown.values(), *journal.odd)}
  meta = {
    'version': packed.VERSION,
    'name': recipe.name,
    'made': [made],
    'image_shape': list(shape),
    'resize': RESIZE,
    'num_train': plan.num_train,
    'num_holdout': len(entries) - plan.num_train,
    'label_ids': list(classes.ids),
    'label_names': list(classes.names),
    'images_per_class': {
      split: np.bincount(part, minlength=len(classes.ids)).tolist()
      for split, part in zip(packed.SPLITS, np.split(plan.labels, [plan.num_train]))
    },
    'label_list': {'name': classes.name, 'digest': classes.digest, 'order': recipe.label_order},
    'notes': plan.notes,
    'num_enlarged': len(journal.small),
    'bad_files': [
      {'file': files_of[row], 'reason': why, 'row': row, 'shows': files_of[shown[row]]}
      for row, why in sorted(bad.items())
    ],
    'mislabelled_files': [
      {'file': files_of[row], 'reason': why} for row, why in sorted(journal.odd.items())
    ],
    **packed.digests_of(work),
  }
  meta['fingerprint'] = packed.fingerprint_of(meta)
  for name in ('images.npy', 'labels.npy'):
    files.sync(work / name)
  packed.write_meta(work, meta)
  return meta
