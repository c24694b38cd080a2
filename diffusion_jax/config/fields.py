"""The schema as a tree in the shape of a config, and what is made of it; reading a nested mapping into it.

A problem is one line, `config.path: got X, allowed Y`.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_jax.config.options import Check, options_of, unknown
from diffusion_jax.config.plugins import Choice, is_dotted, key_of, load_plugin, plugin_names
from diffusion_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A field of a config that holds a value.

  package: of the plug-ins that it names, '' if it names none. from_data: as option().
  """

  default: Any
  comment: str
  check: Check
  change: str
  hint: Any = Any
  package: str = ''
  from_data: Any = None


@dataclasses.dataclass(frozen=True)
class Section:
  """Fields and sections by key. chooser: for a plug-in's, the key beside it that holds the plug-in's name."""

  comment: str
  change: str
  items: Mapping[str, 'Leaf | Section']
  chooser: str = ''


@functools.cache
def section_of(cls: type, change: str = '', chooser: str = '') -> Section:
  """Returns the tree that a dataclass declares: the schema, a section of it, or a plug-in."""
  items: dict[str, Leaf | Section] = {}
  for field in dataclasses.fields(cls):
    metadata, own = field.metadata, field.metadata.get('change') or change
    if 'package' in metadata:
      package, key = metadata['package'], metadata['key'] or 'name'
      names = plugin_names(package)
      check = Check(names.__contains__, ', '.join(names), tuple(names))
      found = {key: Leaf(metadata['name'], metadata['about'], check, own, package=package)}
      found |= {name: section_of(load_plugin(package, name), own, key) for name in names}
      inner = {field.name: Section(metadata['about'], own, found)}
      items |= found if metadata['key'] else inner
    elif 'comment' in metadata:
      written = isinstance(field.type, str)  # By `from __future__ import annotations`.
      hint = typing.get_type_hints(cls)[field.name] if written else field.type
      items[field.name] = Leaf(
        field.default, metadata['comment'], metadata['check'], own, hint, '', metadata['from_data']
      )
    elif 'load' in metadata:
      items |= section_of(metadata['load'](), own).items
    elif 'change' in metadata:
      items[field.name] = section_of(field.type, own)
  return Section((cls.__doc__ or '').split('\n')[0], change, items, chooser)


def schema(cls: type, mapping: Any = None, path: str = 'config') -> Section:
  """section_of, and the sections of the plug-ins that a mapping names by a dotted name.

  Raises: InputError for one that cannot be loaded, or whose key is another's.
  """
  section = section_of(cls)
  return _with_dotted(section, mapping, path) if _has_dotted(cls, mapping) else section


def _has_dotted(cls: type, mapping: Any) -> bool:
  """Returns whether a mapping names a plug-in by a dotted name. Schemas are asked for thousands of times."""
  named = (_names(functools.reduce(_get, path, mapping)) for path in _choices(cls))
  return any(map(is_dotted, itertools.chain.from_iterable(named)))


@functools.cache
def _choices(cls: type) -> list[tuple[str, ...]]:
  """The paths of the fields that name plug-ins."""
  found = [(path, item) for path, item in walk(section_of(cls), '') if isinstance(item, Leaf)]
  return [tuple(path.split('.')[1:]) for path, item in found if item.package]


def _with_dotted(section: Section, mapping: Any, path: str) -> Section:
  items = dict(section.items)
  for key, item in section.items.items():
    value, where = _get(mapping, key), f'{path}.{key}'
    if isinstance(item, Section):
      items[key] = _with_dotted(item, value, where)
      continue
    for name in dict.fromkeys(filter(is_dotted, _names(value))) if item.package else ():
      if key_of(name) in items:
        raise InputError(
          f'{where}: got {name!r}, whose options would share a section with {key_of(name)!r}, which is '
          'something else; rename the module'
        )
      plugin = load_plugin(item.package, name, where)
      items[key_of(name)] = section_of(plugin, item.change, key)
  return dataclasses.replace(section, items=items)


def _names(value: Any) -> list[str]:
  """Lists the names that a choice holds: one, or several."""
  return [n for n in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(n, str)]


def _get(mapping: Any, key: str, default: Any = None) -> Any:
  return mapping.get(key, default) if isinstance(mapping, Mapping) else default


def walk(section: Section, path: str = 'config') -> Iterator[tuple[str, Leaf | Section]]:
  """Everything below a section with its path: its fields, then its sections, each with what is in it."""
  for key, item in sorted(section.items.items(), key=lambda entry: isinstance(entry[1], Section)):
    yield f'{path}.{key}', item
    if isinstance(item, Section):
      yield from walk(item, f'{path}.{key}')


def change_of(section: Section, path: str) -> str:
  """When a run may take another value of the field SECTION.FIELD: one of options.py's, '' if unsaid."""
  item: Leaf | Section = section
  for key in path.split('.'):
    if isinstance(item, Leaf) or key not in item.items:
      break
    item = item.items[key]
  return item.change


def defaults(section: Section) -> dict[str, Any]:
  """The nested mapping of the defaults, all alternatives of a choice included."""
  return {
    key: item.default if isinstance(item, Leaf) else defaults(item)
    for key, item in section.items.items()
    if isinstance(item, Leaf) or item.items
  }


def in_force(section: Section, mapping: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Path and value of a mapping's fields: of a choice only the named alternatives."""
  for key, item in section.items.items():
    if isinstance(item, Leaf):
      yield f'{prefix}{key}', _get(mapping, key)
    elif not item.chooser or key in map(key_of, _names(_get(mapping, item.chooser))):
      yield from in_force(item, _get(mapping, key), f'{prefix}{key}.')


def recognised(
  section: Section, mapping: Any, lost: list[str], path: str = 'config'
) -> dict[str, Any]:
  """The mapping without fields that are not in the schema; their paths are appended to `lost`.

  Raises: ValueError if something else stands where a section must be.
  """
  if not isinstance(mapping, Mapping):
    raise ValueError(f'{path}: got {mapping!r}, allowed a section')
  lost += [f'{path}.{key}' for key in mapping if key not in section.items]
  kept = {key: section.items[key] for key in mapping if key in section.items}
  return {
    key: mapping[key]
    if isinstance(item, Leaf)
    else recognised(item, mapping[key], lost, f'{path}.{key}')
    for key, item in kept.items()
  }


def updated(cls: type, mapping: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
  """The mapping with fields set by path, and the defaults of all that it lacks.

  The section of a plug-in outside the package goes where its dotted name goes.
  Raises: as schema.
  """
  changed = with_values(mapping, values)
  return _settled(changed, schema(cls, mapping), schema(cls, changed))


def _settled(mapping: Mapping[str, Any], before: Section, after: Section) -> dict[str, Any]:
  """The mapping without what only `before` has, and with the defaults of `after`."""
  kept = {k: v for k, v in mapping.items() if k in after.items or k not in before.items}
  for key, item in after.items.items():
    if isinstance(item, Section) and isinstance(kept.get(key), Mapping):
      kept[key] = _settled(kept[key], before.items.get(key, item), item)
  return {**defaults(after), **kept}


def with_values(mapping: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
  """The mapping with fields of any depth set, by path; it shares the rest with the given one."""
  changed = dict(mapping)
  for path, value in values.items():
    *parents, last = path.split('.')
    inner = changed
    for key in parents:
      inner[key] = dict(inner.get(key, {}))
      inner = inner[key]
    inner[last] = value
  return changed


def read(cls: type, mapping: Any, path: str, problems: list[str]) -> Any:
  """An instance of the dataclass `cls`, or None if there were problems, which are appended.

  What the mapping lacks has its default.
  """
  try:
    return _read(cls, schema(cls, mapping, path), mapping, path, problems)
  except InputError as error:
    problems.append(str(error))
    return None


def _read(cls: type, section: Section, mapping: Any, path: str, problems: list[str]) -> Any:
  before = len(problems)
  values = _read_fields(section, mapping, path, problems)
  for field in dataclasses.fields(cls):
    name, where = field.name, f'{path}.{field.name}'
    if key := field.metadata.get('key'):
      values[name] = _read_choice(key, section, mapping, path, problems)
    elif load := field.metadata.get('load'):
      values[name] = {option: values.pop(option, None) for option in options_of(load())}
    elif isinstance(inner := section.items[name], Section):
      given = _get(mapping, name, {})
      if 'package' in field.metadata:
        _read_fields(inner, given, where, problems)  # It has none of its own.
        values[name] = _read_choice('name', inner, given, where, problems)
      else:
        values[name] = _read(field.type, inner, given, where, problems)
  return cls(**values) if len(problems) == before else None


def _read_fields(section: Section, mapping: Any, path: str, problems: list[str]) -> dict[str, Any]:
  """The values of a section's own fields; notes what is no field of it."""
  if not isinstance(mapping, Mapping):
    problems.append(f'{path}: got {mapping!r}, allowed a section; see docs/config.md')
    return {}
  for key in sorted(set(mapping) - set(section.items)):
    problems.append(unknown(f'{path}: unknown field', key, sorted(section.items)))
  return {
    key: _read_value(item, mapping.get(key, item.default), f'{path}.{key}', problems)
    for key, item in section.items.items()
    if isinstance(item, Leaf) and not item.package
  }


def _read_choice(key: str, section: Section, mapping: Any, path: str, problems: list[str]) -> Any:
  """The Choice that `key` names, or the tuple of several."""
  leaf, found = section.items[key], []
  given, many = _get(mapping, key, leaf.default), isinstance(leaf.default, tuple)
  if many and not isinstance(given, (list, tuple)):
    problems.append(f'{path}.{key}: got {given!r}, allowed a tuple of {leaf.check.allowed}')
    return None
  for name in given if many else [given]:
    problem = '' if is_dotted(name) else leaf.check.problem(f'{path}.{key}', name)
    if problem:
      problems.append(f'{problem}; or the dotted name of a module outside the package')
      continue
    own = key_of(name)
    options = _read_fields(section.items[own], _get(mapping, own, {}), f'{path}.{own}', problems)
    found.append(Choice(leaf.package, name, options, path))
  return tuple(found) if many else next(iter(found), None)


def _read_value(leaf: Leaf, value: Any, path: str, problems: list[str]) -> Any:
  hint = leaf.hint
  if isinstance(value, list):
    value = tuple(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not _fits(value, hint):
    expected = getattr(hint, '__name__', str(hint)) if not typing.get_args(hint) else str(hint)
    problems.append(f'{path}: got {value!r}, allowed type {expected}')
  elif hint is float and not math.isfinite(value):
    problems.append(f'{path}: got {value!r}, allowed finite numbers')
  elif problem := leaf.check.problem(path, value):
    problems.append(problem)
  return value


def _fits(value, hint) -> bool:
  if typing.get_origin(hint) is tuple:
    item = typing.get_args(hint)[0]
    return isinstance(value, tuple) and all(_fits(v, item) for v in value)
  if isinstance(value, bool):  # Which Python counts among the integers.
    return hint in (bool, Any)
  return hint is Any or isinstance(value, hint)
