"""Reads class lists: which classes a set has, in which order, under which names.

Two different lists are called ImageNet-100 and share 8 classes: 'cmc' (Tian et al. 2020,
arXiv:1906.05849, the usual one) and 'kaggle'. 'all' takes the classes that are found.
"""

import dataclasses
import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.errors import InputError, listed

FOLDER = Path(__file__).parent / 'class_lists'
ALL = 'all'
SHIPPED = ('cmc', 'kaggle')


@dataclasses.dataclass(frozen=True)
class ClassList:
  """ids: directory names or WNIDs, in label order. names: for people. digest: of both, in order."""

  name: str
  ids: tuple[str, ...]
  names: tuple[str, ...]

  @property
  def digest(self) -> str:
    return hashlib.sha256('\n'.join(self.ids + self.names).encode()).hexdigest()[:16]


def imagenet_names() -> dict[str, str]:
  """Reads WNID -> English name of the 1,000 classes of ILSVRC2012."""
  lines = (FOLDER / 'imagenet_names.tsv').read_text().splitlines()
  return dict(line.split('\t') for line in lines)


def read(source: str, order: str) -> ClassList | None:
  """Reads the list 'cmc', 'kaggle', or that of a file: an id a line, and after a tab its name if it has one.

  Lines that begin with # are comments; after a WNID a space does for the tab.

  None for 'all'. Raises: InputError if there is no such list, or if it is empty or repeats itself.
  """
  if source == ALL:
    return None
  path = FOLDER / f'{source}.txt' if source in SHIPPED else Path(source).expanduser()
  try:
    lines = [line.strip() for line in path.read_text('utf-8-sig').splitlines()]
    lines = [line for line in lines if line and not line.startswith('#')]
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(
      f'config.data.class_list: got {source!r}, which cannot be read as a file ({error}); allowed '
      f"'all', 'cmc', 'kaggle' or a text file with one class a line"
    ) from error
  lines = [re.sub(r'^(n\d{8})\s+', r'\1\t', line) for line in lines]
  given = dict(line.partition('\t')[::2] for line in lines)  # id -> name or ''
  if not lines or len(given) < len(lines):
    found = f'{len(lines)} lines, {len(given)} different'
    raise InputError(f'config.data.class_list: {path}: {found}; allowed one class a line, once')
  return named(Path(source).stem, tuple(given), order, given)


def named(
  name: str, ids: Sequence[str], order: str = 'sorted', names: dict[str, str] | None = None
) -> ClassList:
  """Makes a list in this order; names that are not given come from ImageNet, or are the ids."""
  known = imagenet_names()
  ids = tuple(sorted(ids) if order == 'sorted' else ids)
  return ClassList(name, ids, tuple((names or {}).get(i) or known.get(i, i) for i in ids))


def require_found(wanted: ClassList, found: Sequence[str], origin: str) -> None:
  """Raises: InputError if a class of the list is not among those found."""
  missing = [i for i in wanted.ids if i not in set(found)]
  if not missing:
    return
  some = ', '.join(sorted(found)[:5]) + (', ...' if len(found) > 5 else '')
  if len(missing) == len(wanted.ids):
    raise InputError(
      f'{origin}: none of the {len(wanted.ids)} classes of the list {wanted.name!r} is there; found '
      f'{len(found)} classes ({some}); --config.data.class_list=all takes every class that is found'
    )
  lines = [f'  {i} ({n})' for i, n in zip(wanted.ids, wanted.names) if i in set(missing)]
  close = difflib.get_close_matches(missing[0], found, n=1)
  raise InputError(
    f'{origin}: {len(missing)} of the {len(wanted.ids)} classes of the list {wanted.name!r} are not '
    f'there; found {len(found)} classes ({some})'
    f'{f"; nearest to {missing[0]}: {close[0]}" if close else ""}:\n{listed(lines, 10)}'
  )
