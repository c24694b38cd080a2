"""Finds the prepared sets (packed.py) of a folder, and the one that a run wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.data.packed import read_meta
from diffusion_jax.errors import DamagedError, InputError


def made_from(meta: Mapping[str, Any], source: str) -> bool:
  """Returns whether a set was made from this source; any may have been, if that is empty or only a name."""
  path = Path(source).expanduser()
  if not source or ('/' not in source and not path.exists()):
    return True
  return bool({source, str(path.absolute()), str(path.resolve())} & sources(meta))


def sources(meta: Mapping[str, Any]) -> set[str]:
  """Returns the sources that a set was made from."""
  return {made['source'] for made in meta['made']}


def prepared(folder: Path) -> dict[Path, dict[str, Any]]:
  """Finds every prepared set below `folder` whose description is whole, with its meta."""
  return {path: meta for path, meta in _scan(folder).items() if isinstance(meta, dict)}


def _scan(folder: Path) -> dict[Path, dict[str, Any] | DamagedError]:
  """Finds every set below `folder`, whole or not; a folder that begins with a dot is none yet."""
  found = {}
  if (Path(folder) / 'meta.json').exists():
    raise InputError(
      f'config.data.dir: {folder} is one prepared set; give the folder that holds it: '
      f'{Path(folder).parent}'
    )
  names = ('meta.json', 'images.npy')
  files = (path for name in names for path in Path(folder).glob(f'[!.]*/{name}'))
  for path in sorted({path.parent for path in files}):
    try:
      found[path] = read_meta(path)
    except DamagedError as error:
      found[path] = error
  return found


def damaged(folder: Path) -> list[Path]:
  """Lists the sets below `folder` that have no description, or a damaged one."""
  return [path for path, found in _scan(folder).items() if isinstance(found, DamagedError)]


def refuse_damaged(folder: Path, recipe: Mapping[str, Any], fingerprint: str) -> None:
  """Raises: DamagedError for a set whose description is damaged, if by its name it may be this one.

  Nothing is deleted, and nothing is prepared again in its place: its images may be whole.
  """
  for path, found in _scan(folder).items():
    name, size, of = (path.name.rsplit('-', 2) + ['', ''])[:3]
    known = {'name': name, 'image_size': size}
    fits = all(str(recipe[key]) == known[key] for key in known if key in recipe)
    if isinstance(found, DamagedError) and (fingerprint == of or (fits and not fingerprint)):
      raise found


def matching(
  folder: Path, recipe: Mapping[str, Any], fingerprint: str
) -> dict[Path, dict[str, Any]]:
  """Finds the sets made by `recipe`, or those of `fingerprint` (and the same shape) if one is given.

  A recipe may leave fields out; then any value of them fits.
  """

  def fits(meta):
    if not fingerprint:
      return any(_differing(made['recipe'], recipe) == [] for made in meta['made'])
    side, _, channels = meta['image_shape']
    shape = {'image_size': side, 'channels': channels}
    same = all(shape[key] == recipe[key] for key in shape if key in recipe)
    return meta['fingerprint'] == fingerprint and same

  return {path: meta for path, meta in prepared(folder).items() if fits(meta)}


def find(
  folder: Path, recipe: Mapping[str, Any], fingerprint: str, source: str = ''
) -> tuple[Path, dict[str, Any]]:
  """Finds the one set that matches; of several the one that was made from `source`.

  Raises: InputError if there is none, or several, which lists the sets and what differs.
  DamagedError if there is none, but a damaged one.
  """
  found = matching(folder, recipe, fingerprint)
  if len(found) > 1:
    found = {path: meta for path, meta in found.items() if made_from(meta, source)} or found
  if len(found) == 1:
    return next(iter(found.items()))
  wanted = _wanted(recipe, fingerprint)
  if found:
    lines = [f'{folder} holds {len(found)} prepared sets {wanted}: choose one by']
    for path, meta in found.items():
      origin = ', '.join(sorted(sources(meta)))
      lines.append(f'  --config.data.fingerprint={meta["fingerprint"]}  {path.name}, from {origin}')
    raise InputError('\n'.join(lines))
  refuse_damaged(folder, recipe, fingerprint)
  others = what_is_there(folder, recipe, fingerprint)
  advice = 'run the same command with --mode=prepare and --config.data.source'
  if others:
    raise InputError(f'{others}\ngive the fields of one of them, or {advice}')
  raise InputError(f'no prepared data {wanted} in {folder}; {advice}')


def what_is_there(folder: Path, recipe: Mapping[str, Any], fingerprint: str = '') -> str:
  """Says that no set matches and how those in `folder` differ; '' if there are none.

  Those of the same name come first, and are the only ones if there are any.
  """
  others = prepared(folder)
  same = {p: meta for p, meta in others.items() if meta['name'] == recipe.get('name', meta['name'])}
  lines = [f'  {path.name}: {_told(meta, recipe)}' for path, meta in (same or others).items()]
  wanted = _wanted(recipe, fingerprint)
  return '\n'.join([f'no prepared data {wanted} in {folder}, which holds', *lines]) if lines else ''


def _wanted(recipe: Mapping[str, Any], fingerprint: str) -> str:
  if fingerprint:
    return f'with fingerprint {fingerprint}'
  parts = {'name': '{!r}', 'image_size': '{} px', 'channels': '{} channels'}
  parts['class_list'] = 'class list {!r}'
  return ', '.join(form.format(recipe[key]) for key, form in parts.items() if key in recipe)


def _differing(found: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
  """Lists the fields of `recipe` that `found` has otherwise."""
  return [key for key in recipe if found.get(key) != recipe[key]]


def _told(meta: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
  """Says how a set differs, by the nearest of the recipes that made it."""
  recipes = [made['recipe'] for made in meta['made']]
  found = min(recipes, key=lambda found: len(_differing(found, recipe)))
  differing = _differing(found, recipe)
  if not differing:
    return f'of these settings, but fingerprint {meta["fingerprint"]}'
  return ', '.join(f'{key} {found.get(key)!r}, not {recipe[key]!r}' for key in differing)
