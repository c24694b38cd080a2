"""Defaults of the schema, and reading a nested mapping into it, with every problem noted and none raised.

A problem is one line, `config.path: got X, allowed Y`. A field of type Choice is a plug-in: the name of
a file, and the subsection of that name with the options that the file's class declares.
"""

import dataclasses
import importlib
import math
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.config.options import ANY, options_of, unknown
from diffusion_jax.errors import InputError

CLASS = re.compile(r'^class (\w+)', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A plug-in, diffusion_jax.PACKAGE.NAME, with its options."""

  package: str
  name: str
  options: Mapping[str, Any]
  path: str

  def build(self, **derived: Any) -> Any:
    """As make_plugin. Raises: InputError for options that the plug-in refuses with a ValueError."""
    try:
      return make_plugin(self.package, self.name, **self.options, **derived)
    except ValueError as error:
      raise InputError(f'{self.path}.{self.name}.{error}') from error


def choice(
  package: str, default: str, comment: str, change: str = '', *, inline: bool = False
) -> Any:
  """A field that is one of the plug-ins in diffusion_jax.`package`.

  inline: `name` and the subsections stand beside the section's other fields.
  """
  metadata = {'package': package, 'name': default, 'about': comment, 'change': change}
  metadata |= {'inline': inline}
  return dataclasses.field(
    default_factory=lambda: default_choice(package, default), metadata=metadata
  )


def choices(package: str, default: Sequence[str], comment: str, change: str = '') -> Any:
  """A field that is several of them."""
  metadata = {'package': package, 'name': default, 'about': comment, 'change': change}
  metadata |= {'inline': True}
  return dataclasses.field(
    default_factory=lambda: tuple(default_choice(package, name) for name in default),
    metadata=metadata,
  )


def default_choice(package: str, name: str) -> Choice:
  """The plug-in with the defaults of its options."""
  options = options_of(load_plugin(package, name))
  return Choice(package, name, {n: f.default for n, f in options.items()}, f'config.{package}')


def plugin_names(package: str) -> list[str]:
  """The files of diffusion_jax.`package` that are plug-ins: those with a class of their own name."""
  folder = Path(__file__).parents[1].joinpath(*package.split('.'))
  names = (module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg)
  return sorted(name for name in names if _class_name(name, (folder / f'{name}.py').read_text()))


def load_plugin(package: str, name: str) -> type:
  """The class of diffusion_jax/PACKAGE/NAME.py that has the file's name: DiT of dit.py, DDIM of ddim.py."""
  module = importlib.import_module(f'diffusion_jax.{package}.{name}')
  return getattr(module, _class_name(name, Path(module.__file__).read_text()))


def make_plugin(package: str, name: str, /, **arguments: Any) -> Any:
  """An instance of the plug-in's class, or what its method `build` makes of it.

  arguments: its options, and what the code adds: to the class, or to `build` where there is one.
  """
  cls = load_plugin(package, name)
  if not hasattr(cls, 'build'):
    return cls(**arguments)
  options = {key: arguments.pop(key) for key in options_of(cls) if key in arguments}
  return cls(**options).build(**arguments)


def _class_name(name: str, source: str) -> str:
  """Of the class whose name is that of its file but for case and underscores; '' if there is none."""
  plain = name.replace('_', '')
  return next((found for found in CLASS.findall(source) if found.lower() == plain), '')


def defaults(cls: type) -> dict[str, Any]:
  """The nested mapping of a section's defaults, all alternatives of a choice included."""
  mapping: dict[str, Any] = {}
  for field in dataclasses.fields(cls):
    if 'package' not in field.metadata:
      inner = dataclasses.is_dataclass(field.type)
      mapping[field.name] = defaults(field.type) if inner else field.default
      continue
    package, name = field.metadata['package'], field.metadata['name']
    alternatives = {n: defaults_of_plugin(package, n) for n in plugin_names(package)}
    alternatives = {n: options for n, options in alternatives.items() if options}
    if field.type != Choice:
      mapping |= {field.name: name, **alternatives}
    elif field.metadata['inline']:
      mapping |= {'name': name, **alternatives}
    else:
      mapping[field.name] = {'name': name, **alternatives}
  return mapping


def defaults_of_plugin(package: str, name: str) -> dict[str, Any]:
  """Option -> default."""
  return {n: f.default for n, f in options_of(load_plugin(package, name)).items()}


def described(cls: type, path: str = 'config', change: str = '') -> Iterator[dict[str, Any]]:
  """Every field below a section: path, default, comment, allowed, change; a section has only a comment."""
  for field in dataclasses.fields(cls):
    own, where = field.metadata.get('change') or change, f'{path}.{field.name}'
    if 'comment' in field.metadata:
      yield _described(field, where, own)
    elif 'package' in field.metadata:
      package = field.metadata['package']
      many = field.type != Choice
      section = path if field.metadata['inline'] else where
      if section == where:
        yield {'path': where, 'comment': field.metadata['about']}
      yield {
        'path': where if many else f'{section}.name',
        'default': field.metadata['name'],
        'comment': field.metadata['about'],
        'allowed': ', '.join(plugin_names(package)),
        'change': own,
      }
      for name in plugin_names(package):
        plugin = load_plugin(package, name)
        if options_of(plugin):
          yield {'path': f'{section}.{name}', 'comment': _summary(plugin)}
        for key, option in options_of(plugin).items():
          yield _described(option, f'{section}.{name}.{key}', option.metadata['change'] or own)
    else:
      yield {'path': where, 'comment': _summary(field.type)}
      yield from described(field.type, where, own)


def _described(field: dataclasses.Field, path: str, change: str) -> dict[str, Any]:
  said = {'default': field.default, 'comment': field.metadata['comment']}
  return {'path': path, **said, 'allowed': field.metadata['check'].allowed, 'change': change}


def _summary(cls: type) -> str:
  return (cls.__doc__ or '').split('\n')[0]


def change_of(cls: type, path: str) -> str:
  """When a run may take another value of the field SECTION.FIELD: one of options.py's, '' if unsaid."""
  change = ''
  for key in path.split('.'):
    if not dataclasses.is_dataclass(cls):
      break
    found = {field.name: field for field in dataclasses.fields(cls)}
    if key in found:
      change = found[key].metadata.get('change') or change
      package = found[key].metadata.get('package')
      cls = _Plugins(package) if package else found[key].type
    elif isinstance(cls, _Plugins) and key in plugin_names(cls.package):
      cls = load_plugin(cls.package, key)
  return change


@dataclasses.dataclass(frozen=True)
class _Plugins:
  """Stands for the section of a choice."""

  package: str


def read(cls: type, mapping: Any, path: str, problems: list[str]) -> Any:
  """An instance of the dataclass `cls`, or None if there were problems, which are appended."""
  if not isinstance(mapping, Mapping):
    problems.append(f'{path}: got {mapping!r}, allowed a section; see docs/config.md')
    return None
  before, values = len(problems), {}
  known, hints = set(), typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    name, hint = field.name, hints[field.name]
    if hint is Choice and field.metadata['inline']:
      known |= {'name', *plugin_names(field.metadata['package'])}
      values[name] = _read_choice(mapping, field.metadata, path, problems)
      continue
    known.add(name)
    if name not in mapping:
      problems.append(f'{path}.{name}: missing; docs/config.md has it')
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
      values[name] = _read_value(mapping[name], field, f'{path}.{name}', problems)
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
      inline = metadata['inline'] or field.name not in mapping
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
        wanted = options_of(load_plugin(metadata['package'], name))
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


def _read_choice(section: Mapping, metadata: Mapping, path: str, problems: list[str]) -> Choice:
  package, names = metadata['package'], plugin_names(metadata['package'])
  name = section.get('name')
  if name not in names:
    problems.append(unknown(f'{path}.name', name, names))
    return None
  wanted = options_of(load_plugin(package, name))
  given, path_of = section.get(name, {}), f'{path}.{name}'
  options = {}
  for key, field in wanted.items():
    if key not in given:
      problems.append(f'{path_of}.{key}: missing; docs/config.md has it')
    else:
      options[key] = _read_value(given[key], field, f'{path_of}.{key}', problems)
  for key in sorted(set(given) - set(wanted)):
    problems.append(unknown(f'{path_of}: unknown field', key, sorted(wanted)))
  return Choice(package, name, options, path)


def _read_value(value: Any, field: dataclasses.Field, path: str, problems: list[str]) -> Any:
  hint, check = field.type, field.metadata.get('check', ANY)
  if isinstance(value, list):
    value = tuple(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not _fits(value, hint):
    expected = getattr(hint, '__name__', str(hint)) if not typing.get_args(hint) else str(hint)
    problems.append(f'{path}: got {value!r}, allowed type {expected}')
  elif hint is float and not math.isfinite(value):
    problems.append(f'{path}: got {value!r}, allowed finite numbers')
  elif problem := check.problem(path, value):
    problems.append(problem)
  return value


def _fits(value, hint) -> bool:
  if typing.get_origin(hint) is tuple:
    item = typing.get_args(hint)[0]
    return isinstance(value, tuple) and all(_fits(v, item) for v in value)
  if isinstance(value, bool):  # Which Python counts among the integers.
    return hint in (bool, Any)
  return hint is Any or isinstance(value, hint)
