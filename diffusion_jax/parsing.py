"""From the flags to a config: a file, a shipped one by its name, or the config.json of a work directory."""

import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.config import shipped
from diffusion_jax.config.fields import Section, defaults, schema, updated, walk
from diffusion_jax.config.options import unknown
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError, Stop
from diffusion_jax.experiment import stored
from diffusion_jax.usage import leaves, nearest_fields, usage

OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')


def parse(argv: list[str], values: flags.FlagValues) -> tuple[dict[str, Any], dict[str, Any]]:
  """The resolved config as a plain mapping, and the fields set by flags (path -> value).

  Without --config it is that of DIR/config.json; --mode=report and --fields need none. Plug-ins outside
  the package are looked for in the current directory too.
  Raises: InputError for anything wrong with the command line or the config file.
  """
  from ml_collections import config_flags

  if str(Path.cwd()) not in sys.path:
    sys.path.append(str(Path.cwd()))
  workdir, reader = value_of(argv, 'workdir'), ConfigReader(values['config'].parser, argv)
  values['config'].parser = reader
  path = value_of(argv, 'config')
  if path is None:
    path = str(_default_config(argv, workdir))
    argv = [argv[0], f'--config={path}', *argv[1:]]
  try:
    rest = values(argv)[1:]
    if rest:
      raise InputError(f'arguments without a flag: {" ".join(rest)}\n{usage()}')
    config = values['config'].value.to_dict()
  except OSError as error:
    if Path(path).is_dir():
      raise InputError(
        f'--config={path}: a folder; allowed a file of configs/, its name, or the config.json of a work '
        'directory'
      ) from error
    if not Path(path.split(':')[0]).is_file():
      files = sorted(str(p) for p in Path('configs').glob('*.py')) if '.py' in path else []
      raise InputError(unknown('--config: no such file', path, files or shipped.names())) from error
    raise InputError(f'--config={path}: {error}') from error
  except Stop:
    raise
  except Exception as error:  # A config file is code of the user's: anything can come out of it.
    raise InputError(_told(error, argv, reader.config)) from error
  for lost in reader.lost if workdir is None or Path(path).parent != Path(workdir) else ():
    print(f'{path}: {lost} is not read, it no longer exists')
  return config, dict(config_flags.get_override_values(values['config']))


def value_of(argv: list[str], name: str) -> str | None:
  """The last --name=VALUE, or --name VALUE."""
  return next(iter(values_of(argv, name)[::-1]), None)


def values_of(argv: list[str], name: str) -> list[str]:
  """Every --name=VALUE, or --name VALUE."""
  found = []
  for argument, following in zip(argv, [*argv[1:], '']):
    if re.fullmatch(f'--?{name}', argument):
      found.append(following)
    elif re.match(f'--?{name}=', argument):
      found.append(argument.split('=', 1)[1])
  return found


def named_plugins(argv: list[str]) -> dict[str, str | tuple[str, ...]]:
  """The names of plug-ins that flags give: path -> name, or names."""
  from ml_collections.config_flags.tuple_parser import TupleParser

  found = {}
  for where, item in walk(schema(Config)):
    given = values_of(argv, re.escape(where))
    if given and not isinstance(item, Section) and item.package:
      several = isinstance(item.default, tuple)
      names = tuple(name for value in given for name in TupleParser().parse(value))
      found[where.removeprefix('config.')] = names if several else given[-1]
  return found


def _default_config(argv: list[str], workdir: str | None) -> Path:
  """The config of the work directory. Raises: InputError if it has none."""
  if value_of(argv, 'mode') == 'report':
    return shipped.FOLDER / 'report.py'
  if workdir is None and '--fields' in argv:
    return shipped.FOLDER / 'base.py'
  if workdir is None:
    raise InputError(f'--config is missing\n{usage()}')
  path = Path(workdir).expanduser() / stored.FILE
  if not path.is_file():
    raise InputError(
      f'--config is missing, and {path} does not exist, so nothing was trained in {workdir}\n{usage()}'
    )
  return path


class ConfigReader:
  """The parser of --config: a Python file as ml_collections reads it, or a config.json.

  argv: the command line; the options of the plug-ins that it names are fields too.
  """

  def __init__(self, python, argv: list[str]):
    self.python, self.argv = python, argv
    self.config, self.lost = None, []  # The config, and its fields that no longer exist.

  def flag_type(self) -> str:
    return self.python.flag_type()

  def parse(self, path: str) -> Any:
    """The ConfigDict, complete and locked. Raises: InputError, DamagedError; as the Python parser."""
    if not path.endswith('.json'):
      config = self.python.parse(shipped.resolved(path))
    else:
      mapping, self.lost = stored.read(Path(path).expanduser())
      config = locked(mapping, path)
    mapping = updated(Config, config.to_dict(), named_plugins(self.argv))
    with config.unlocked():
      _fit(config, mapping)
    self.config = config
    return config


def locked(mapping: Mapping[str, Any], path: str) -> Any:
  """The defaults with the values of a config.json, as a locked ConfigDict.

  Raises: InputError for values of other types than those of the defaults.
  """
  from ml_collections import ConfigDict

  config, problems = ConfigDict(defaults(schema(Config, mapping))), []
  _update(config, mapping, 'config', problems)
  if problems:
    raise InputError('\n'.join(f'{path}: {problem}' for problem in problems))
  return config.lock()


def _update(config, mapping: Mapping[str, Any], prefix: str, problems: list[str]) -> None:
  for key, value in mapping.items():
    if key in config and isinstance(value, Mapping):
      _update(config[key], value, f'{prefix}.{key}', problems)
      continue
    try:
      config[key] = value
    except TypeError:
      expected = type(config[key]).__name__
      problems.append(f'{prefix}.{key}: got {value!r}, allowed type {expected}')


def _fit(config: Any, mapping: Mapping[str, Any]) -> None:
  """Gives a ConfigDict the keys of the mapping; its own values stay."""
  for key in set(config) - set(mapping):
    del config[key]
  for key, value in mapping.items():
    if key not in config:
      config[key] = value
    elif isinstance(value, Mapping):
      _fit(config[key], value)


def _told(error: Exception, argv: list[str], config: Any) -> str:
  """A flag's error in one line; the place of an error in a config file.

  config: what was read before the flags were applied, or None.
  """
  if config is not None:
    known = config.to_dict()
    given = [found[1] for found in map(OVERRIDE.match, argv) if found]
    wrong = [path for path in dict.fromkeys(given) if path not in {*leaves(known)}]
    if wrong:
      return '\n'.join(_no_such_field(path, known) for path in wrong)
  text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
  lines = [line.strip() for line in str(text).splitlines() if line.strip()]
  message = lines[-1] if 'Traceback' in str(text) else ' '.join(lines)
  place = traceback.extract_tb(error.__traceback__)[-1]
  if not any(name in place.filename for name in ('absl', 'ml_collections', 'importlib')):
    return f'{place.filename}:{place.lineno}: {type(error).__name__}: {message}'
  return message


def _no_such_field(path: str, known: Mapping[str, Any]) -> str:
  section = known
  for key in path.split('.'):
    section = section.get(key) if isinstance(section, Mapping) else None
  if isinstance(section, Mapping):
    return f'--config.{path}: a section; set its fields: {", ".join(leaves(section, f"{path}."))}'
  near = nearest_fields(path, leaves(known))
  hint = f' (nearest {", ".join(map(repr, near))})' if near else ''
  return f'--config.{path}: no such field{hint}; --mode=describe --fields lists them all'
