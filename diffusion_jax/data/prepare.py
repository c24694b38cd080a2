"""Makes a prepared set (packed.py) once from any form in which people have images.

list the source -> classes and splits -> a place for every image -> decode -> digests -> rename

Several processes, one a host, decode a share each. The first one alone decides what is missing, and finishes.
"""

import dataclasses
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data import packed, packing, sets, shares
from diffusion_jax.data.decode import RESIZE
from diffusion_jax.data.plan import Plan, Recipe, contradictions, make_plan, substitutes_for
from diffusion_jax.errors import InputError, Stop, listed
from diffusion_jax.runtime import files, hosts, lease, provenance

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

  Called by all processes. workers: decoding processes of each, 0 for one a core. num_classes: as many as it
  must have, 0 for any.
  Raises: InputError, for what cannot be used or written; DamagedError for a broken archive, or a
  prepared set whose description is damaged and which may be this one.
  """
  plan, identity, readers = _listed(source, recipe, num_classes)
  found = hosts.from_first(lambda: _find(folder, recipe, identity))
  if not found:
    work = folder / f'.preparing-{identity}'
    count = workers or max(1, cores() // _sharing())
    job = _Job(plan, identity, work, max_bad_fraction, count, readers)
    with (
      job.advising(),
      lease.held(folder / f'{work.name}.lease', f'preparing {source} in {folder}'),
    ):
      found = hosts.from_first(lambda: _find(folder, recipe, identity)) or job.run()
  path, meta = found
  return Path(path), meta


def _listed(
  source: str, recipe: Recipe, num_classes: int
) -> tuple[Plan | None, str, Sequence[int]]:
  """Lists the source on all processes.

  Returns: the plan, None where the source cannot be read, the identity of the first process's, and the
  processes that have the same one.
  """
  plan = None

  def work(check):
    nonlocal plan
    try:
      plan = make_plan(source, recipe)
      require_classes(num_classes, plan.classes.names, plan.reader.origin)
    except Stop as error:
      if hosts.is_first():
        raise
      return {'reason': str(error)}
    return {'identity': plan.identity()}

  found = hosts.together(work)
  identity = found[0]['identity']
  for number, each in enumerate(found):
    if each.get('identity') != identity:
      reason = each.get('reason', 'other files, or other times of change')
      hosts.say(f'process {number} decodes nothing, as it sees another {source}: {reason}')
  return plan, identity, [n for n, each in enumerate(found) if each.get('identity') == identity]


def _find(folder: Path, recipe: Recipe, identity: str) -> tuple[str, dict[str, Any]] | None:
  """Returns the set that was made of this source by this recipe, verified. Raises: as prepare."""
  for path, meta in sets.prepared(folder).items():
    if identity in [made['identity'] for made in meta['made']]:
      packed.verify(path, meta, full=True)
      print(f'{path}: prepared already, and whole')
      return str(path), meta
  sets.refuse_damaged(folder, {'name': recipe.name, 'image_size': recipe.image_size}, '')
  return None


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
  files.remove(work, packing.JOURNALS)  # First: without pixels they would be a lie.
  shutil.rmtree(work)
  return known


def cores() -> int:
  """Counts the cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def _sharing() -> int:
  """Counts the processes of this run that share the cores of this host."""
  names = hosts.gather(socket.gethostname())
  return names.count(socket.gethostname()) if cores() == os.cpu_count() else 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
  """One preparation in the folder `work`. readers: the processes that decode; the others have no plan."""

  plan: Plan | None
  identity: str
  work: Path
  max_bad_fraction: float
  workers: int
  readers: Sequence[int]

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(N, H, W, C)."""
    side = self.plan.recipe.image_size
    return len(self.plan.entries), side, side, self.plan.recipe.channels

  @property
  def images(self) -> Path:
    return self.work / 'images.npy'

  def advising(self):
    """As files.advising."""
    return files.advising(self.work, int(np.prod(self.shape)) if self.plan else 0)

  def run(self) -> tuple[str, dict[str, Any]]:
    """Makes the set. Returns: its folder and meta."""
    hosts.require_shared(self.work.parent, 'config.data.dir', shares.ADVICE)
    missing = hosts.from_first(self.begin)
    bad = hosts.together(lambda check: self.decode(missing, check))
    return hosts.from_first(lambda: self.finish(bad))

  def begin(self) -> list[list[int]]:
    """Reserves the array. Returns: the missing rows, as [start, stop) each."""
    with self.advising():
      self.work.mkdir(parents=True, exist_ok=True)
      for path in sorted(self.work.parent.glob('.preparing-*/')):
        if path != self.work:
          print(
            f'{path} belongs to another preparation that did not end; delete it if it never will'
          )
      files.reserved_array(self.images, self.shape, np.uint8, packing.JOURNALS)
      journal, known = packing.Journal(self.images), contradictions(self.plan.entries)
    self.check_bad(known)
    if journal.rows:
      print(f'going on: {len(journal.rows):,} images are there from an interrupted run')
    return shares.pieces_of(packing.lacking(journal, len(self.plan.entries), known))

  def check_bad(self, bad: Mapping[int, str]) -> None:
    """Raises: InputError if there are too many."""
    entries, origin = self.plan.entries, self.plan.reader.origin
    if len(bad) > self.max_bad_fraction * len(entries):
      found = [f'  {entries[row].where}: {why}' for row, why in sorted(bad.items())]
      raise InputError(
        f'{origin}: {len(bad)} bad files among {len(entries):,} images, more than '
        f'config.data.max_bad_fraction {self.max_bad_fraction:g} allows (so far):\n'
        f'{listed(found, LISTED)}\n'
        'raise the fraction, and the same command goes on; or repair or remove them, and it begins anew'
      )

  def decode(
    self, missing: Sequence[Sequence[int]], check: Callable[[], None]
  ) -> list[tuple[int, str]]:
    """Fills this process's share of the missing rows. Returns: the bad ones and why."""
    here = hosts.number()
    if here not in self.readers:
      return []
    place, rows = self.readers.index(here), shares.rows_of(missing)
    share = shares.share(rows, place, len(self.readers))
    print(f'decoding {len(share):,} of {len(rows):,} missing images', flush=True)
    return list(self.pack(share, check).items())

  def pack(self, rows: np.ndarray, check: Callable[[], None] = lambda: None) -> dict[int, str]:
    """Fills these rows. Returns: row -> why there is no image. Raises: as packing.pack."""
    plan, known = self.plan, contradictions(self.plan.entries)
    with self.advising():
      array = np.load(self.images, mmap_mode='r')
      target = packing.Target(str(self.images), array.offset, *array.shape[2:])
      return packing.pack(
        plan.reader,
        plan.entries,
        rows.tolist(),
        target,
        packing.Journal(self.images, hosts.number()),
        check_bad=lambda bad: self.check_bad({**known, **bad}),
        workers=self.workers,
        check=check,
        hidden=not hosts.is_first(),
      )

  def finish(self, found: Sequence[Sequence[tuple[int, str]]]) -> tuple[str, dict[str, Any]]:
    """Completes and publishes the set, once all have decoded. found: the bad rows of each process."""
    with self.advising():
      bad = contradictions(self.plan.entries) | {row: why for each in found for row, why in each}
      bad |= self.mend(bad)
      self.check_bad(bad)
      meta = self.describe(bad)
      for path, there in sets.prepared(self.work.parent).items():
        if there['fingerprint'] == meta['fingerprint']:
          return str(path), _joined(path, there, meta, self.work)
      recipe = self.plan.recipe
      target = self.work.parent / f'{recipe.name}-{recipe.image_size}-{meta["fingerprint"]}'
      files.publish(self.work, target, packing.JOURNALS)
      return str(target), meta

  def mend(self, bad: Mapping[int, str]) -> dict[int, str]:
    """Fills rows that several writers have spoiled, or whose note did not arrive. Returns: new bad rows."""
    journal = packing.Journal(self.images)
    wrong = packing.lacking(journal, len(self.plan.entries), bad)
    if journal.is_shared:
      altered = packing.altered(np.load(self.images, mmap_mode='r'), journal)
      wrong = np.union1d(wrong, altered).astype(int)
    if not len(wrong):
      return {}
    print(f'{len(wrong):,} images did not arrive whole from all processes: decoding them again')
    return self.pack(wrong)

  def describe(self, bad: Mapping[int, str]) -> dict[str, Any]:
    """Writes substitutes of bad images, labels.npy and meta.json. Returns: the meta."""
    plan, work = self.plan, self.work
    reader, entries, recipe, classes = plan.reader, plan.entries, plan.recipe, plan.classes
    images, journal = np.load(self.images, mmap_mode='r+'), packing.Journal(self.images)
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
      'identity': self.identity,
    }
    files_of = {row: entries[row].where for row in (*bad, *shown.values(), *journal.odd)}
    meta = {
      'version': packed.VERSION,
      'name': recipe.name,
      'made': [made],
      'image_shape': list(self.shape[1:]),
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
