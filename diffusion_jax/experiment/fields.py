"""Reading a nested mapping into frozen dataclasses, with every problem noted and none raised.

A problem is one line, `config.path: got X, allowed Y`. The dataclass says what is allowed: the
annotation is the type, `where(...)` a condition. A field of type Choice is a plug-in: the name of a
module that defines `build`, and the subsection of that name, whose keys are build's parameters.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Choice:
  """A plug-in: diffusion_jax.PACKAGE.NAME, called as build(**options, **what the code adds)."""

  package: str
  name: str
  options: Mapping[str, Any]
  path: str

  def build(self, **derived) -> Any:
    """Raises: InputError for options that build refuses with a ValueError."""
    try:
      return load_plugin(self.package, self.name).build(**self.options, **derived)
    except ValueError as error:
      raise InputError(f'{self.path}.{self.name}.{error}') from error


def where(ok: Callable[[Any], bool], allowed: str):
  """A field whose value must satisfy ok; `allowed` says what that is."""
  return dataclasses.field(metadata={'ok': ok, 'allowed': allowed})


def one_of(*values):
  """A field with one of these values."""
  return dataclasses.field(metadata={'values': values})


def choice(package: str, derived: Sequence[str] = ()):
  """A Choice among the modules of diffusion_jax.`package`; the code adds the `derived` arguments."""
  return dataclasses.field(metadata={'package': package, 'derived': tuple(derived)})


def plugin_names(package: str) -> list[str]:
  """The modules of diffusion_jax.`package` that define `build`."""
  folder = Path(__file__).parents[1].joinpath(*package.split('.'))
  names = (module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg)
  return sorted(n for n in names if '\ndef build(' in (folder / f'{n}.py').read_text())


def load_plugin(package: str, name: str) -> Any:
  """The module diffusion_jax.PACKAGE.NAME."""
  return importlib.import_module(f'diffusion_jax.{package}.{name}')


def unknown(what: str, got: str, allowed: Sequence[str]) -> str:
  """'what: got X, allowed A, B (nearest A)'."""
  close = difflib.get_close_matches(str(got), [str(name) for name in allowed], n=1)
  nearest = f' (nearest {close[0]!r})' if close else ''
  return f'{what}: got {got!r}, allowed {", ".join(map(str, allowed))}{nearest}'


def read(cls: type, mapping: Any, path: str, problems: list[str]) -> Any:
  """An instance of the dataclass `cls`, or None if there were problems, which are appended."""
  if not isinstance(mapping, Mapping):
    problems.append(f'{path}: got {mapping!r}, allowed a section; see configs/base.py')
    return None
  before, values = len(problems), {}
  known, hints = set(), typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name, hint = field.name, hints[field.name]
    if (
      hint is Choice and name not in mapping
    ):  # The section is a choice with more fields beside it.
      known |= {'name', *plugin_names(field.metadata['package'])}
      values[name] = _read_choice(mapping, field.metadata, path, problems)
      continue
    known.add(name)
    if name not in mapping:
      problems.append(f'{path}.{name}: missing; configs/base.py has it')
    elif hint == tuple[Choice, ...]:  # Names here, the subsection of each beside them.
      package = field.metadata['package']
      known |= set(plugin_names(package))
      sections = [{'name': n, n: mapping.get(n, {})} for n in mapping[name]]
      choices = [_read_choice(s, field.metadata, path, problems) for s in sections]
      values[name] = tuple(choices)
    elif hint is Choice:
      section, inner = mapping[name], f'{path}.{name}'
      values[name] = _read_choice(section, field.metadata, inner, problems)
      extra = sorted(set(section) - {'name', *plugin_names(field.metadata['package'])})
      problems += [f'{inner}.{key}: no such choice or field' for key in extra]
    elif dataclasses.is_dataclass(hint):
      values[name] = read(hint, mapping[name], f'{path}.{name}', problems)
    else:
      values[name] = _read_value(mapping[name], hint, f'{path}.{name}', problems, field.metadata)
  for name in sorted(set(mapping) - known):
    problems.append(unknown(f'{path}: unknown field', name, sorted(known)))
  return cls(**values) if len(problems) == before else None


def recognised(cls: type, mapping: Any, path: str = 'config') -> tuple[dict[str, Any], list[str]]:
  """The mapping without the fields that `cls` does not have, and the paths of those.

  Raises: ValueError if something else stands where a section must be.
  """
  if not isinstance(mapping, Mapping):
    raise ValueError(f'{path}: got {mapping!r}, allowed a section')
  hints, kept, lost = typing.get_type_hints(cls), dict(mapping), []
  names, sections = set(), {}
  for field in dataclasses.fields(cls):
    hint, metadata = hints[field.name], field.metadata
    names.add(field.name)
    if hint in (Choice, tuple[Choice, ...]):
      plugins = plugin_names(metadata['package'])
      inline = (
        hint is not Choice or field.name not in mapping
      )  # Subsections stand beside the field.
      if inline:
        names |= {'name', *plugins}
      elif isinstance(mapping[field.name], Mapping):
        inner = mapping[field.name]
        kept[field.name] = {k: v for k, v in inner.items() if k in ('name', *plugins)}
        lost += [f'{path}.{field.name}.{k}' for k in inner if k not in ('name', *plugins)]
      else:
        raise ValueError(f'{path}.{field.name}: got {mapping[field.name]!r}, allowed a section')
      section = kept if inline else kept[field.name]
      for name in set(section) & set(plugins):
        wanted = _options(metadata, name)
        where_ = f'{path}.{name}' if inline else f'{path}.{field.name}.{name}'
        if not isinstance(section[name], Mapping):
          raise ValueError(f'{where_}: got {section[name]!r}, allowed a section')
        lost += [f'{where_}.{key}' for key in section[name] if key not in wanted]
        section[name] = {k: v for k, v in section[name].items() if k in wanted}
    elif dataclasses.is_dataclass(hint) and field.name in mapping:
      sections[field.name] = hint
  for name, hint in sections.items():
    kept[name], more = recognised(hint, mapping[name], f'{path}.{name}')
    lost += more
  lost += [f'{path}.{name}' for name in kept if name not in names]
  return {name: value for name, value in kept.items() if name in names}, sorted(lost)


def _options(metadata: Mapping, name: str) -> dict[str, Any]:
  """Name -> annotation of what the plug-in's build takes from the config."""
  build = load_plugin(metadata['package'], name).build
  parameters = inspect.signature(build, eval_str=True).parameters
  return {n: p.annotation for n, p in parameters.items() if n not in metadata['derived']}


def _read_choice(section: Mapping, metadata: Mapping, path: str, problems: list[str]) -> Choice:
  package, names = metadata['package'], plugin_names(metadata['package'])
  name = section.get('name')
  if name not in names:
    problems.append(unknown(f'{path}.name', name, names))
    return None
  wanted = _options(metadata, name)
  given, path_of = section.get(name, {}), f'{path}.{name}'
  options = {}
  for key, annotation in wanted.items():
    if key not in given:
      problems.append(f'{path_of}.{key}: missing; configs/base.py has it')
    else:
      options[key] = _read_value(given[key], annotation, f'{path_of}.{key}', problems)
  for key in sorted(set(given) - set(wanted)):
    problems.append(unknown(f'{path_of}: unknown field', key, sorted(wanted)))
  return Choice(package, name, options, path)


def _read_value(value, hint, path: str, problems: list[str], metadata: Mapping = {}) -> Any:
  if isinstance(value, list):
    value = tuple(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not _fits(value, hint):
    expected = getattr(hint, '__name__', str(hint)) if not typing.get_args(hint) else str(hint)
    problems.append(f'{path}: got {value!r}, allowed type {expected}')
  elif hint is float and not math.isfinite(value):
    problems.append(f'{path}: got {value!r}, allowed finite numbers')
  elif 'values' in metadata and value not in metadata['values']:
    problems.append(unknown(path, value, metadata['values']))
  elif 'ok' in metadata and not metadata['ok'](value):
    problems.append(f'{path}: got {value!r}, allowed {metadata["allowed"]}')
  return value


def _fits(value, hint) -> bool:
  if typing.get_origin(hint) is tuple:
    item = typing.get_args(hint)[0]
    return isinstance(value, tuple) and all(_fits(v, item) for v in value)
  if isinstance(value, bool):  # Which Python counts among the integers.
    return hint in (bool, Any)
  return hint is Any or isinstance(value, hint)
