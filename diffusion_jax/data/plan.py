"""Plans a prepared set: which images it holds, in which place, under which label."""

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data import class_lists, packed
from diffusion_jax.data.decode import RESIZE
from diffusion_jax.data.readers import open_source
from diffusion_jax.data.readers.base import Entry, Listing, Reader
from diffusion_jax.errors import InputError

WNID = re.compile(r'n\d{8}')
MAX_BYTES = 2**29  # The most that a file may have.
SHARED = -1  # A holdout of this many: the source's own, or a share of every class.
SHARE, AT_MOST = 0.1, 5000  # The share, and the most images that it may come to.


@dataclasses.dataclass(frozen=True)
class Recipe:
  """The settings of a prepared set; config.data has the same fields.

  holdout: a number of images, the same share of every class; or SHARED.
  """

  name: str
  image_size: int
  channels: int
  class_list: str
  label_order: str
  holdout: int
  split_seed: int

  def mapping(self) -> dict[str, Any]:
    """Returns the settings for JSON, with the digest of the class list: its file may change."""
    classes = class_lists.read(self.class_list, self.label_order)
    digest = classes.digest if classes else ''
    name = classes.name if classes else self.class_list
    return {**dataclasses.asdict(self), 'class_list': name, 'class_list_digest': digest}


class Plan(NamedTuple):
  """entries: the training images, then the held-out ones, each by label and name."""

  reader: Reader
  recipe: Recipe
  entries: list[Entry]
  labels: np.ndarray
  num_train: int
  classes: class_lists.ClassList
  notes: list[str]

  def identity(self) -> str:
    """Digests the source, its listing and the recipe: the same command on the same files has the same.

    The same content from another place is found by its fingerprint, once it is decoded.
    """
    made = [self.recipe.mapping(), RESIZE, packed.CHUNK_BYTES]
    digest = hashlib.sha256(json.dumps(made).encode())
    origin = self.reader.origin
    digest.update('\n'.join((origin, *self.classes.ids, *self.classes.names)).encode())
    for e in self.entries:
      digest.update(f'\n{e.split}/{e.class_id}/{e.name} {e.stamp}'.encode())
    return digest.hexdigest()[:16]


def list_source(
  reader: Reader, class_list: str, label_order: str
) -> tuple[Listing, class_lists.ClassList]:
  """Lists the images of the wanted classes, and these classes.

  Raises: InputError, DamagedError: as the reader; InputError for a wrong class list, or a source
  without its classes.
  """
  wanted = class_lists.read(class_list, label_order)
  listing = reader.listing(lambda class_id: wanted is None or class_id in wanted.ids)
  if wanted:
    class_lists.require_found(wanted, listing.class_ids, reader.origin)
  return listing, wanted or class_lists.named(class_lists.ALL, listing.class_ids, label_order)


def make_plan(source: str, recipe: Recipe) -> Plan:
  """Decides which image goes where.

  Raises: as list_source; InputError for a class without images, or a holdout that the source does not
  allow.
  """
  reader = open_source(source)
  print(f'listing {reader.origin} ({reader.form})', flush=True)
  listing, classes = list_source(reader, recipe.class_list, recipe.label_order)
  label_of = {class_id: label for label, class_id in enumerate(classes.ids)}
  entries = sorted(listing.entries, key=lambda e: (label_of[e.class_id], e.name))
  trained = {e.class_id for e in entries if e.split == 'train'}
  empty = [class_id for class_id in classes.ids if class_id not in trained]
  if empty:
    raise InputError(f'{reader.origin}: classes without training images: {", ".join(empty[:10])}')
  labels = np.asarray([label_of[e.class_id] for e in entries], np.int32)
  is_held = _held(entries, labels, recipe, classes.ids, reader.origin)
  train = [e for e, out in zip(entries, is_held) if not out]
  holdout = [e._replace(split='holdout') for e, out in zip(entries, is_held) if out]
  labels = np.concatenate([labels[~is_held], labels[is_held]])
  return Plan(reader, recipe, train + holdout, labels, len(train), classes, listing.notes)


def _held(
  entries: Sequence[Entry], labels: np.ndarray, recipe: Recipe, ids: Sequence[str], origin: str
) -> np.ndarray:
  """Returns whether each image is held out. Raises: InputError for a holdout that is not possible."""
  own = np.asarray([e.split == 'holdout' for e in entries])
  if not recipe.holdout or (recipe.holdout == SHARED and own.any()):
    return own
  got = f'config.data.holdout: got {recipe.holdout}'
  if own.any():
    raise InputError(f'{got}, allowed 0: {origin} has a held-out set of its own')
  if recipe.holdout == SHARED:
    held = shared_holdout(labels, recipe.split_seed)
  else:
    held = _stratified(labels, recipe, ids, got, origin)
  own[held] = True
  return own


def _stratified(
  labels: np.ndarray, recipe: Recipe, ids: Sequence[str], got: str, origin: str
) -> np.ndarray:
  from sklearn.model_selection import train_test_split

  classes, count, sizes = len(ids), len(labels), np.bincount(labels)
  expected = f'{origin} has {count} images of {classes} classes, and both parts need every class'
  if not classes <= recipe.holdout <= count - classes:
    allowed = f'{classes}..{count - classes}' if count >= 2 * classes else 'only 0'
    raise InputError(f'{got}, allowed {allowed}: {expected}')
  smallest = f'the smallest class, {ids[sizes.argmin()]}, has {sizes.min()} images'
  try:
    _, held = train_test_split(
      np.arange(count), test_size=recipe.holdout, stratify=labels, random_state=recipe.split_seed
    )
  except ValueError as error:  # A class with a single image cannot be in both parts.
    raise InputError(f'{got}; {expected}, but {smallest}') from error
  if len(np.unique(labels[held])) < classes:
    raise InputError(f'{got}, too few: {expected}, but {smallest}')
  return held


def shared_holdout(labels: np.ndarray, seed: int) -> np.ndarray:
  """Draws the indices of a tenth of every class, 5,000 in all at most; at least one of a class that has two."""
  share = min(SHARE, AT_MOST / len(labels))
  rng, held = np.random.Generator(np.random.Philox(seed)), []
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    count = max(1, round(share * len(members))) if len(members) > 1 else 0
    held.append(rng.permutation(members)[:count])
  return np.concatenate(held)


def contradictions(entries: Sequence[Entry]) -> dict[int, str]:
  """Finds files that are bad before they are read. Returns: row -> reason.

  These are giants, and files whose name states another WNID than the folder that they lie in.
  """
  wrong = {}
  for row, entry in enumerate(entries):
    named = WNID.match(entry.name.rsplit('/', 1)[-1])
    if named and WNID.fullmatch(entry.class_id) and named[0] != entry.class_id:
      wrong[row] = f'mislabelled (named {named[0]}, lies in class {entry.class_id})'
    elif entry.size > MAX_BYTES:
      wrong[row] = f'too large ({entry.size:,} bytes)'
  return wrong


def substitutes_for(bad: dict[int, str], plan: Plan) -> dict[int, int]:
  """Finds for every bad row the next good one of its class and split, around the end.

  Thus the set keeps its length and order, and no training step sees a blank image.
  Raises: InputError if a class has no good image.
  """
  rows, found = collections.defaultdict(list), {}
  for row, entry in enumerate(plan.entries):
    rows[entry.split, entry.class_id].append(row)
  for row in bad:
    entry = plan.entries[row]
    peers = rows[entry.split, entry.class_id]
    place = peers.index(row)
    good = [peer for peer in peers[place:] + peers[:place] if peer not in bad]
    if not good:
      raise InputError(f'{entry.where}: class {entry.class_id} has no readable {entry.split} image')
    found[row] = good[0]
  return found
