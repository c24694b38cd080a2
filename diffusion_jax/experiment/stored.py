"""Reads and writes DIR/config.json, and compares what was trained with what the command line gives.

DIR/data.json describes the data, so that sampling needs no copy of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.config.fields import change_of, in_force, recognised, schema, updated
from diffusion_jax.config.options import BY_COMMAND, IF_GIVEN, NEVER, SETTING
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import DamagedError, InputError, Stop
from diffusion_jax.runtime import files
from diffusion_jax.usage import leaves

FILE = 'config.json'
META_FILE = 'data.json'
AUTOENCODER = 'vae.safetensors'  # The copy that decodes the samples of a latent system.
FORMAT_VERSION = 1  # Rises when the meaning of a field or a parameter layout changes.
SECTIONS = ('data', 'model', 'train')  # Every config.json of this program has these.
FREE = (SETTING, BY_COMMAND, IF_GIVEN)  # Changes of fields that leave a checkpoint valid.


def has_checkpoint(workdir: Path) -> bool:
  """Returns whether there is a finished checkpoint."""
  folder = workdir / 'checkpoints'
  return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


def is_begun(workdir: Path) -> bool:
  """Returns whether there is a checkpoint, or weights of config.init_from were sampled untrained."""
  return has_checkpoint(workdir) or bool(began_with(workdir))


def began_with(workdir: Path) -> str:
  """Returns config.init_from of DIR/config.json; '' without it, or without a readable config."""
  try:
    return load(workdir).get('init_from', '')
  except (Stop, OSError):  # Writing there reports the error.
    return ''


def load(workdir: Path) -> dict[str, Any]:
  """Returns the stored mapping, complete, without fields that no longer exist. Raises: as read."""
  return read(workdir / FILE)[0]


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
  """Reads a config.json. Returns: the mapping, and the paths of fields that no longer exist.

  Lists become tuples, and missing fields take their defaults.
  Raises: InputError if there is none, its format version differs, or a plug-in is not found;
  DamagedError if it is not the JSON of a config.
  """
  try:
    mapping = _tuples(json.loads(path.read_bytes()))
    version = mapping.pop('format_version', 0) if isinstance(mapping, dict) else 0
    lost: list[str] = []
    found = recognised(schema(Config, mapping), mapping, lost)
    lacking = [name for name in SECTIONS if name not in found]
    if lacking:
      raise ValueError(f'it has no config.{lacking[0]}')
  except FileNotFoundError as error:
    raise InputError(f'{path}: not found, so nothing was trained in {path.parent}') from error
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except (ValueError, RecursionError) as error:
    raise DamagedError(
      f'{path}: not the config of a run ({error}); restore it from a copy, or train in another workdir'
    ) from error
  if version != FORMAT_VERSION:
    raise InputError(
      f'{path}: got format_version {version or "none"}, allowed {FORMAT_VERSION}: another version of '
      'diffusion_jax wrote it, with other meanings of its fields; go on with that version, or train in '
      'another workdir'
    )
  return updated(Config, found, {}), sorted(lost)


def save(workdir: Path, mapping: Mapping[str, Any], file: str = FILE) -> None:
  """Writes DIR/config.json with its format version, whole or not at all."""
  if file == FILE:
    mapping = {'format_version': FORMAT_VERSION, **mapping}
  files.write_json(workdir / file, mapping)


def save_meta(workdir: Path, meta: Mapping[str, Any]) -> None:
  """Writes DIR/data.json: the description of the data, without what only their reader needs."""
  save(workdir, {key: meta[key] for key in meta if key != 'chunk_digests'}, META_FILE)


def load_meta(workdir: Path, fingerprint: str) -> dict[str, Any] | None:
  """Reads DIR/data.json; returns None unless it is readable and describes the data of this run."""
  try:
    meta = json.loads((workdir / META_FILE).read_text())
    return meta if meta['fingerprint'] == fingerprint else None
  except (*files.NOT_JSON, KeyError, TypeError):
    return None


def with_value(mapping: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
  """Returns the mapping with SECTION.FIELD set."""
  section, field = path.split('.')
  return {**mapping, section: {**mapping[section], field: value}}


def as_trained(workdir: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in the fingerprints of data and autoencoder that `workdir` was trained with.

  If the given autoencoder no longer exists, the copy in `workdir` takes its place.
  """
  trained = load(workdir)
  for section in ('data', 'vae'):
    if not mapping[section]['fingerprint']:
      fingerprint = trained.get(section, {}).get('fingerprint', '')
      mapping = with_value(mapping, f'{section}.fingerprint', fingerprint)
  return with_autoencoder(workdir, mapping)


def with_autoencoder(workdir: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Replaces an autoencoder that no longer exists by the copy in `workdir`."""
  given = mapping['vae']['checkpoint']
  if given and Path(given).expanduser().exists():
    return dict(mapping)
  return with_own_autoencoder(workdir, mapping)


def with_own_autoencoder(workdir: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Sets config.vae.checkpoint to the copy in `workdir`, if there is one."""
  copy = workdir / AUTOENCODER
  return with_value(mapping, 'vae.checkpoint', str(copy)) if copy.exists() else dict(mapping)


def merged(workdir: Path, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the stored config with the FREE fields of the given one; overrides: the flags.

  Raises: InputError for a flag that contradicts what was trained.
  """
  trained, given = load(workdir), _plain(given)
  problems = []
  for path, value in sorted(overrides.items()):
    if not _is(given, path, *FREE) and value_at(trained, path) != value_at(given, path):
      problems.append(
        f'--config.{path}: got {value!r}, but {workdir} was trained with {value_at(trained, path)!r}; '
        'leave the flag out, or train in another workdir'
      )
  if problems:
    raise InputError('\n'.join(problems))
  chosen = [path for path in leaves(given) if _is(given, path, BY_COMMAND)]
  chosen += [path for path in overrides if _is(given, path, SETTING, IF_GIVEN)]
  return updated(Config, trained, {path: value_at(given, path) for path in chosen})


def with_settings(
  workdir: Path, given: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the given config with the settings of `workdir` where no flag gives others."""
  trained, given = load(workdir), _plain(given)
  settings = {section: trained[section] for section in trained if _is(trained, section, SETTING)}
  chosen = [path for path in overrides if _is(given, path, SETTING)]
  return updated(Config, {**given, **settings}, {path: value_at(given, path) for path in chosen})


def settings_kept(
  workdir: Path, given: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[str]:
  """Lists settings of `workdir` that overrule the given config, as 'path: value, not VALUE'."""
  new, old = (
    {path: value for path, value in _in_force(mapping).items() if _is(mapping, path, SETTING)}
    for mapping in (_plain(given), with_settings(workdir, given, overrides))
  )
  return [f'{p}: {old[p]!r}, not {new.get(p)!r}' for p in old if old[p] != new.get(p)]


def changes(workdir: Path, given: Mapping[str, Any]) -> list[str]:
  """Lists differences from the stored config that keep the checkpoint valid, as 'path: old -> new'.

  Raises: InputError for a difference that voids it.
  """
  trained, given = load(workdir), updated(Config, _plain(given), {})
  old, new = _in_force(trained), _in_force(given)
  differing = [path for path in sorted({*old, *new}) if old.get(path) != new.get(path)]
  fatal = [p for p in differing if _is(given if p in new else trained, p, NEVER)]
  if fatal:
    lines = [f'config.{p}: trained with {old.get(p)!r}, got {new.get(p)!r}' for p in fatal]
    advice = f'go on with the same values, or train in another workdir than {workdir}'
    raise InputError('\n'.join(['the checkpoint does not fit this config:', *lines, advice]))
  noted = [p for p in differing if p == 'dtype' or not _is(given, p, *FREE)]
  return [f'{p}: {old.get(p)!r} -> {new.get(p)!r}' for p in noted]


def _is(mapping: Mapping[str, Any], path: str, *changes: str) -> bool:
  """Returns whether the schema gives a field or section one of these kinds of change."""
  return change_of(schema(Config, mapping), path) in changes


def _in_force(mapping: Mapping[str, Any]) -> dict[str, Any]:
  return dict(in_force(schema(Config, mapping), mapping))


def value_at(mapping: Mapping[str, Any], path: str) -> Any:
  """Returns the value of SECTION.FIELD, or None."""
  for key in path.split('.'):
    mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
  return mapping


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an independent copy, as JSON would give it, with tuples for lists."""
  return _tuples(json.loads(json.dumps(mapping)))


def _tuples(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
