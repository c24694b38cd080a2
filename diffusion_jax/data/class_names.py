"""Finds the label of a class name, and names the folders that hold the images of each class."""

import difflib
import re
from collections.abc import Sequence

SHOWN = 5  # Names that are near to an unknown one.


def label_of(name: str, names: Sequence[str]) -> int:
  """Returns the label of a class, letters large or small.

  Raises: ValueError that lists the nearest names, or the labels of several classes of that name.
  """
  for same in (str, str.casefold):
    found = [label for label, other in enumerate(names) if same(other) == same(name)]
    if len(found) == 1:
      return found[0]
    if found:
      raise ValueError(f'got {name!r}, the name of several classes, allowed their numbers {found}')
  near = nearest(name, names)
  hint = f'nearest {", ".join(map(repr, near))}' if near else f'such as {list(names[:SHOWN])}'
  raise ValueError(
    f'got {name!r}, allowed the names of the {len(names):,} classes ({hint}) or numbers'
  )


def nearest(name: str, names: Sequence[str]) -> list[str]:
  """Returns the names that hold the given one, then those spelt nearly like it; SHOWN at most."""
  wanted, folded = name.casefold(), {other.casefold(): other for other in names}
  holding = [other for key, other in folded.items() if wanted and wanted in key]
  alike = [folded[key] for key in difflib.get_close_matches(wanted, folded, SHOWN)]
  return list(dict.fromkeys([*holding, *alike]))[:SHOWN]


def folder_names(names: Sequence[str]) -> list[str]:
  """Names a folder for each class, as --mode=prepare reads them: its name without what no path may hold.

  Classes of one name get their label behind it.
  """
  safe = [re.sub(r'[/\\\0\n]', '_', name) for name in names]
  safe = [re.sub(r'^\.+', '', name).strip() or 'class' for name in safe]
  folded = [name.casefold() for name in safe]
  return [
    name if folded.count(name.casefold()) == 1 else f'{name} ({label})'
    for label, name in enumerate(safe)
  ]
