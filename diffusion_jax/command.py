"""From a parsed command to its stage: every mistake is one message."""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_jax.config.listing import all_fields
from diffusion_jax.config.options import unknown
from diffusion_jax.config.schema import SPLITS
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import from_data, given_sizes, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import files
from diffusion_jax.usage import USAGE, modes

BEFORE_TRAINING = ('train', 'prepare', 'reference', 'bench')
OF_RUNS = ('report',)  # The workdir holds the work directories of others.
FROM_WEIGHTS = ('sample', 'evaluate')  # May begin with config.init_from, without training.


def run_mode(
  mode: str,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  workdir,
  *,
  as_json: bool = False,
  fields: bool = False,
) -> None:
  """Checks the mode, the work directory and the config, then runs the stage.

  as_json, fields: what --mode=describe prints instead of its page.

  Raises: errors.Stop with what the user is told and the exit code.
  """
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # TensorFlow only reads data here.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if mode not in modes():
    raise InputError(unknown('--mode', mode, modes()))
  for flag in ['json'] * as_json + ['fields'] * fields:
    if mode != 'describe':
      raise InputError(f'--{flag}: got --mode={mode}, allowed only with --mode=describe')
  if fields:
    print(all_fields(config), end='')
    return
  if config.get('task') == 'report':  # As configs/report.py.
    if mode not in OF_RUNS:
      raise InputError(
        f'--mode={mode}: this config describes a report, not a run; use --mode=report, or give the '
        'config of a run'
      )
    config = {**config, 'task': 'diffusion'}
  stage = importlib.import_module(f'diffusion_jax.stages.{mode}')
  folder = Path(workdir).expanduser().absolute() if workdir else None
  if folder is None and mode != 'describe':
    raise InputError(f'--workdir is missing\n{USAGE}')
  try:
    config = from_data.as_stored(config, folder)
    if mode in BEFORE_TRAINING:
      require_writable(folder)
    if mode not in OF_RUNS:
      config = remembered(folder, config, overrides)
    run_stage(mode, stage, folder, config, overrides, **({'as_json': True} if as_json else {}))
  except OSError as error:
    message = files.message(error)
    if message is None:
      raise
    raise InputError(message) from error


def run_stage(
  mode: str, stage: ModuleType, folder: Path | None, config: Mapping, overrides: Mapping, **options
) -> None:
  """Runs the stage on what the work directory holds."""
  begins = mode in FROM_WEIGHTS and config.get('init_from') and not stored.is_begun(folder)
  if begins:
    require_writable(folder)
    restored = importlib.import_module('diffusion_jax.stages.sample').begin(create(config), folder)
    if mode == 'sample':
      options['restored'] = restored  # They are read once.
    del restored
  meta = None
  if mode not in (*BEFORE_TRAINING, *OF_RUNS):
    config, meta = trained(mode, folder, config, overrides)
  stage.run(create(config, meta), folder, **options)


def remembered(
  folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Mapping[str, Any]:
  """The config with the settings of the work directory, or before training the sizes of init_from.

  Flags come first. Prints what is in force against the config file.
  """
  if folder is None or not _is_in_force(folder, overrides):
    if config['init_from']:
      config, changes = given_sizes.adopt(config, overrides)
      say('as config.init_from has it', changes)
    return config
  began, lost = stored.read(folder / stored.FILE)
  say(f'{folder / stored.FILE}: not read, as it no longer exists', lost)
  say(
    f'as {folder / stored.FILE} has it, which only flags change',
    [f'config.{line}' for line in stored.settings_kept(folder, config, overrides)],
  )
  if began.get('init_from') and began.get('task') == 'diffusion':
    sizes = given_sizes.of_workdir(folder, config['space'])
    config, _ = given_sizes.with_sizes(config, sizes, overrides)
  if not stored.has_checkpoint(folder):
    config = stored.with_autoencoder(folder, {**config, 'init_from': began['init_from']})
  return stored.with_settings(folder, config, overrides)


def _is_in_force(folder: Path, overrides: Mapping[str, Any]) -> bool:
  """Whether the folder has a checkpoint, or began with weights and no flag gives others."""
  if stored.has_checkpoint(folder):
    return True
  began = stored.began_with(folder)
  return bool(began) and overrides.get('init_from', began) == began


def say(title: str, lines: Sequence[str]) -> None:
  """Prints the lines below a title, if there are any, not to where --json writes."""
  for line in lines:
    print(f'{title}: {line}', file=sys.stderr)


def trained(
  mode: str, folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
  """The config with what the work directory was trained with, and its description of the data.

  Raises: InputError if there is no checkpoint, or a flag contradicts it; `describe` needs none.
  """
  if folder is None or not stored.is_begun(folder):
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
