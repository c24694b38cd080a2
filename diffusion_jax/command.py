"""From the command line to a stage: every mistake in a flag is one message."""

import importlib
import os
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from diffusion_jax.errors import InputError
from diffusion_jax.experiment import from_data, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.fields import unknown
from diffusion_jax.experiment.sections import SPLITS

BEFORE_TRAINING = ('train', 'prepare', 'reference', 'bench')
OF_RUNS = ('report',)  # The workdir holds the work directories of others.
FROM_WEIGHTS = ('sample', 'evaluate')  # May begin with config.init_from, without training.
STAGES = Path(__file__).parent / 'stages'
USAGE = (
  'usage: python main.py --config=configs/quickstart.py --workdir=DIR [--mode=train] '
  '[--config.FIELD=VALUE ...]'
)


def modes() -> list[str]:
  """The files of diffusion_jax/stages."""
  return sorted(path.stem for path in STAGES.glob('*.py') if path.stem != '__init__')


def parse(argv: list[str], values: flags.FlagValues) -> tuple[dict[str, Any], dict[str, Any]]:
  """The resolved config as a plain mapping, and the fields set by flags (path -> value).

  Raises: InputError for anything wrong with the command line or the config file.
  """
  from ml_collections import config_flags

  try:
    rest = values(argv)[1:]
    if rest:
      raise InputError(f'arguments without a flag: {" ".join(rest)}\n{USAGE}')
    if values['config'].value is None:
      raise InputError(f'--config is missing\n{USAGE}')
    config = values['config'].value.to_dict()
    overrides = dict(config_flags.get_override_values(values['config']))
  except OSError as error:
    path = re.search(r'--config[= ]([^ ]*)', ' '.join(argv))[1]
    found = sorted(str(p) for p in Path('configs').glob('*.py'))
    if not Path(path.split(':')[0]).is_file():
      raise InputError(unknown('--config: no such file', path, found)) from error
    raise InputError(f'--config={path}: {error}') from error
  except InputError:
    raise
  except Exception as error:  # A config file is code of the user's: anything can come out of it.
    raise InputError(_told(error, argv)) from error
  return config, overrides


def _told(error: Exception, argv: list[str]) -> str:
  """A flag's error in one line; the place of an error in a config file."""
  text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
  lines = [line.strip() for line in str(text).splitlines() if line.strip()]
  message = lines[-1] if 'Traceback' in str(text) else ' '.join(lines)
  place = traceback.extract_tb(error.__traceback__)[-1]
  if not any(name in place.filename for name in ('absl', 'ml_collections', 'importlib')):
    return f'{place.filename}:{place.lineno}: {type(error).__name__}: {message}'
  if isinstance(error, (AttributeError, KeyError)):  # ml_collections quotes only the last key.
    fields = [arg.split('=')[0] for arg in argv if arg.startswith('--config.')]
    quoted = re.findall(r"'(\w+)", message.replace('\\', ''))
    unknown_fields = [field for field in fields if set(field.split('.')) & set(quoted)]
    nearest = re.search(r'Did you mean "(\w+)"', message)
    if unknown_fields:
      hint = f" (nearest '{nearest[1]}')" if nearest else ''
      return f'{unknown_fields[0]}: no such field{hint}; configs/base.py has them all'
  return message


def run_mode(
  mode: str, config: Mapping[str, Any], overrides: Mapping[str, Any], workdir, *, as_json: bool
) -> None:
  """Checks the mode, the work directory and the config, then runs the stage.

  Raises: errors.Stop with what the user is told and the exit code.
  """
  if mode not in modes():
    raise InputError(unknown('--mode', mode, modes()))
  if as_json and mode != 'describe':
    raise InputError(f'--json: got --mode={mode}, allowed only with --mode=describe')
  stage = importlib.import_module(f'diffusion_jax.stages.{mode}')
  folder = Path(workdir).expanduser().absolute() if workdir else None
  if folder is None and mode != 'describe':
    raise InputError(f'--workdir is missing\n{USAGE}')
  meta = None
  try:
    config = from_data.as_stored(config, folder)
    if mode in BEFORE_TRAINING:
      require_writable(folder)
    elif mode in FROM_WEIGHTS and config.get('init_from') and not stored.has_checkpoint(folder):
      require_writable(folder)
      importlib.import_module('diffusion_jax.stages.train').begin(create(config), folder)
    if mode not in (*BEFORE_TRAINING, *OF_RUNS):
      config, meta = trained(mode, folder, config, overrides)
    experiment = create(config, meta)
    stage.run(experiment, folder, **({'as_json': True} if as_json else {}))
  except OSError as error:
    if error.errno is None or error.filename is None:
      raise
    raise InputError(f'{error.filename}: {error.strerror}') from error


def trained(
  mode: str, folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
  """The config with what the work directory was trained with, and its description of the data.

  Raises: InputError if there is no checkpoint, or a flag contradicts it; `describe` needs none.
  """
  if folder is None or not stored.has_checkpoint(folder):
    if mode == 'describe':
      return config, None
    weights = ', or give weights: --config.init_from=PATH' if mode in FROM_WEIGHTS else ''
    raise InputError(
      f'{folder}: no checkpoint here, so there is nothing to {mode}; train first: '
      f'the same command with --mode=train{weights}'
    )
  began = stored.load(folder).get('init_from', '')
  if overrides.get('init_from', began) != began:
    raise InputError(
      f'--config.init_from: got {overrides["init_from"]!r}, but {folder} began with {began!r}; leave the '
      'flag out, or use another workdir'
    )
  config = stored.merged(folder, config, overrides)
  if 'vae.checkpoint' not in overrides:
    config = stored.with_own_autoencoder(folder, config)
  fingerprint = config['data']['fingerprint']
  given = config['eval']['reference'] not in SPLITS  # Of elsewhere, like the weights.
  if not fingerprint and mode != 'sample' and not (mode == 'evaluate' and given):
    return config, None  # No images were prepared, and they are needed.
  return config, stored.load_meta(folder, fingerprint)


def require_writable(folder: Path) -> None:
  """Makes the folder. Raises: InputError if nothing can be written there."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.probe-{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise InputError(f'--workdir={folder}: cannot write there ({error.strerror})') from error
