"""Resolves a config: flags first, then what a work directory was trained with, then the config file."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.config.schema import SPLITS
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import given_sizes, stored

# Modes that may begin with config.init_from, without training.
FROM_WEIGHTS = ('sample', 'evaluate', 'sweep')
MEASURING = ('evaluate', 'sweep')


def remembered(
  folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Applies the settings of the work directory or, before training, the sizes of config.init_from.

  Flags come first. Prints what overrules the config file.
  """
  if folder is None or not _is_in_force(folder, overrides):
    if config['init_from']:
      config, changes = given_sizes.adopt(config, overrides)
      say('sizes of config.init_from', changes)
    return config
  began, lost = stored.read(folder / stored.FILE)
  say(f'{folder / stored.FILE}: ignored a field that no longer exists', lost)
  say(
    f'from {folder / stored.FILE}, which only flags overrule',
    [f'config.{line}' for line in stored.settings_kept(folder, config, overrides)],
  )
  if began.get('init_from') and began['objective']['name'] != 'autoencoder':
    sizes = given_sizes.of_workdir(folder, config['space'])
    config, _ = given_sizes.with_sizes(config, sizes, overrides)
  if not stored.has_checkpoint(folder):
    config = stored.with_autoencoder(folder, {**config, 'init_from': began['init_from']})
  return stored.with_settings(folder, config, overrides)


def _is_in_force(folder: Path, overrides: Mapping[str, Any]) -> bool:
  """Returns whether the folder has a checkpoint, or began with weights and no flag gives others."""
  if stored.has_checkpoint(folder):
    return True
  began = stored.began_with(folder)
  return bool(began) and overrides.get('init_from', began) == began


def say(title: str, lines: Sequence[str]) -> None:
  """Prints each line with the title to stderr, because --json writes to stdout."""
  for line in lines:
    print(f'{title}: {line}', file=sys.stderr)


def trained(
  mode: str, folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
  """Returns the config that the work directory was trained with, and its description of the data.

  Raises: InputError if there is no checkpoint (`describe` needs none) or a flag contradicts it.
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
  given = config['eval']['reference'] not in SPLITS  # A reference from elsewhere, like the weights.
  if not fingerprint and mode != 'sample' and not (mode in MEASURING and given):
    return config, None  # Images are needed, and none were prepared.
  return config, stored.load_meta(folder, fingerprint)
