"""Plug-ins: a choice in the config is a file with a class of its name, and the options that it declares.

A field of type Choice is a plug-in. Its name is that of a file of the package ('dit' of diffusion_jax/models)
or the dotted name of any module on the Python path ('mylab.heun3'). The options that the module's class
declares are the fields of a subsection, whose key is the last part of the name.
"""

import dataclasses
import importlib
import pkgutil
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.config.options import options_of
from diffusion_jax.errors import InputError

CLASS = re.compile(r'^class (\w+)', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Choice:
  """A plug-in with its options: diffusion_jax.PACKAGE.NAME, or the module NAME if that has dots.

  path: of the section that its own stands in.
  """

  package: str
  name: str
  options: Mapping[str, Any]
  path: str

  @property
  def section(self) -> str:
    """The path of its options."""
    return f'{self.path}.{key_of(self.name)}'

  def build(self, **derived: Any) -> Any:
    """Builds the plug-in. Raises: InputError for options that it refuses with a ValueError."""
    try:
      return make_plugin(self.package, self.name, **self.options, **derived)
    except ValueError as error:
      raise InputError(f'{self.section}.{error}') from error


def choice(
  package: str,
  default: str | tuple[str, ...],
  comment: str,
  change: str = '',
  key: str = '',
  common: bool = False,
) -> Any:
  """A field that is one of the plug-ins in diffusion_jax.`package`, or several if the default is a tuple.

  key: what holds the name, or the names, beside the section's other fields, and so do the options; ''
  makes a section of its own, with the key `name`. common: whether --help lists it.
  """
  metadata = {'package': package, 'name': default, 'about': comment, 'change': change, 'key': key}
  metadata['common'] = common
  return dataclasses.field(default_factory=lambda: _chosen(package, default), metadata=metadata)


def _chosen(package: str, name: str | tuple[str, ...]) -> Choice | tuple[Choice, ...]:
  if isinstance(name, tuple):
    return tuple(_chosen(package, each) for each in name)
  return Choice(package, name, _defaults_of(load_plugin(package, name)), f'config.{package}')


def options_from(module: str, name: str) -> Any:
  """A field that holds the options of the class `name` of diffusion_jax.`module`.

  They are fields of the section, beside its own.
  """

  def load() -> type:
    return getattr(importlib.import_module(f'diffusion_jax.{module}'), name)

  return dataclasses.field(default_factory=lambda: _defaults_of(load()), metadata={'load': load})


def _defaults_of(cls: type) -> dict[str, Any]:
  return {name: field.default for name, field in options_of(cls).items()}


def plugin_names(package: str) -> list[str]:
  """The files of diffusion_jax.`package` that are plug-ins: those with a class of their own name."""
  folder = Path(__file__).parents[1].joinpath(*package.split('.'))
  names = (module.name for module in pkgutil.iter_modules([str(folder)]) if not module.ispkg)
  return sorted(
    name
    for name in names
    if _plain(name) in map(str.lower, CLASS.findall((folder / f'{name}.py').read_text()))
  )


def load_plugin(package: str, name: str, path: str = 'name') -> type:
  """The dataclass that has the module's name but for case and underscores: DiT of dit.py.

  Raises: InputError, which names `path`, for a module outside the package that cannot be imported or has
  no such class.
  """
  dotted = is_dotted(name)
  try:
    module = importlib.import_module(name if dotted else f'diffusion_jax.{package}.{name}')
  except Exception as error:  # It is code of the user's: anything can come out of it.
    if not dotted:
      raise
    raise InputError(f'{path}: got {name!r}, but {_import_problem(name, error)}') from error
  for key, value in vars(module).items():
    if key.lower() == _plain(name) and isinstance(value, type) and dataclasses.is_dataclass(value):
      return value
  wanted = ''.join(word.capitalize() for word in key_of(name).split('_'))
  raise InputError(f'{path}: got {name!r}, but {module.__file__ or name} has no dataclass {wanted}')


def _import_problem(name: str, error: Exception) -> str:
  if isinstance(error, ModuleNotFoundError) and f'{name}.'.startswith(f'{error.name}.'):
    return f'there is no module {error.name} on the Python path or in this directory'
  frames = [f for f in traceback.extract_tb(error.__traceback__) if 'importlib' not in f.filename]
  place = ''.join(f' ({f.filename}:{f.lineno})' for f in frames[1:][-1:])
  return f'importing it raised {type(error).__name__}: {error}{place}'


def make_plugin(package: str, name: str, /, **arguments: Any) -> Any:
  """An instance of the plug-in's class, or what its method `build` makes of it.

  arguments: its options, and what the code adds: to the class, or to `build` where there is one.
  """
  cls = load_plugin(package, name)
  if not hasattr(cls, 'build'):
    return cls(**arguments)
  options = {key: arguments.pop(key) for key in options_of(cls) if key in arguments}
  return cls(**options).build(**arguments)


def is_dotted(name: Any) -> bool:
  """Whether a plug-in's name is that of a module outside the package."""
  return isinstance(name, str) and '.' in name and all(map(str.isidentifier, name.split('.')))


def key_of(name: str) -> str:
  """The key of a plug-in's section: the last part of its name."""
  return name.rpartition('.')[2]


def _plain(name: str) -> str:
  return key_of(name).replace('_', '').lower()
