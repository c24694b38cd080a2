"""The work directories below a folder, read from the files that they hold.

A run is a folder with config.json and eval/*.json. What cannot be read is left out and remarked: a
report of the others is worth more than none.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.reporting.panel import Denoising
from diffusion_jax.reporting.records import (
  Published,
  Record,
  canonical,
  is_autoencoder,
  is_number,
  natural,
  part_of,
  section_of,
)
from diffusion_jax.reporting.tables import shortened
from diffusion_jax.runtime import files
from diffusion_jax.usage import program

REPORT = 'report'  # The folder below the given one where nothing is looked for.
INSIDE = {'checkpoints', 'samples', 'eval', 'previews', 'logs'}  # Of a run: no run is in there.
# Of a result, what each entry is; the first two cannot be missing.
ENTRIES = {
  **{'metrics': dict, 'protocol': dict, 'deviation': dict, 'samples': dict},
  **{'seeds': list, 'warnings': list, 'parameters': int, 'images_per_s': (int, float)},
}
BACKBONES = {'dit': 'DiT', 'unet': 'UNet'}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """A work directory: its name, its folder and path below the report's, config.json, data.json.

  results: what eval/*.json hold, by the stem of their names.
  """

  name: str
  folder: Path
  path: str
  config: Mapping[str, Any]
  data: Mapping[str, Any]
  results: Mapping[str, Mapping[str, Any]]

  @property
  def data_name(self) -> str:
    return str(self.data.get('name') or part_of(self.config, 'data', 'name') or 'data')


def collect(workdir: Path, remark: Callable[[str], None]) -> list[Run]:
  """Every run with a readable result, by path; what cannot be read is remarked.

  Raises: InputError if nothing below it is a run, DamagedError if no result can be read.
  """
  found, trained = [], []
  for folder in folders(workdir):
    if not (folder / 'config.json').is_file():
      continue
    if any((folder / 'eval').glob('*.json')):
      found.append(folder)
    elif (folder / 'metrics.jsonl').exists() or (folder / 'checkpoints').is_dir():
      trained.append(folder)
      remark(f'{folder}: not evaluated (no eval/*.json), so left out; --mode=evaluate does it')
  if not found:
    raise InputError(nothing_found(workdir, trained))
  runs = []
  for folder in found:
    config = read_json(folder / 'config.json', remark)
    results = {path.stem: read_result(path, remark) for path in (folder / 'eval').glob('*.json')}
    results = {stem: results[stem] for stem in sorted(results, key=natural) if results[stem]}
    if config and results:
      data = read_json(folder / 'data.json', remark) or {}
      relative = folder.relative_to(workdir).as_posix()
      path = workdir.name if relative == '.' else relative
      runs.append(Run('', folder, path, config, data, results))
  if not runs:
    raise DamagedError(
      f'{workdir}: no result can be read in {len(found)} runs; measure again with --mode=evaluate, or '
      f'see the files: {", ".join(map(str, found))}'
    )
  runs.sort(key=lambda r: natural(r.path))
  names = [published_of(r.config).name for r in runs]
  return [dataclasses.replace(r, name=name_of(r.path, n, names)) for r, n in zip(runs, names)]


def name_of(path: str, published: str, names: Sequence[str]) -> str:
  """A run's name in the report: as published, with the path if several are called so, or the path."""
  if not published:
    return path
  return published if names.count(published) == 1 else f'{published} ({path})'


def nothing_found(workdir: Path, trained: Sequence[Path]) -> str:
  """The message where there is no run."""
  evaluating = f'{program()} --workdir={trained[0] if trained else workdir / "quickstart"}'
  commands = [f'{evaluating} --mode=evaluate']
  if not trained:
    commands = [f'{evaluating} --config=quickstart', *commands]
  state = f'only trained, not evaluated: {", ".join(map(str, trained))}. ' if trained else ''
  return (
    f'--workdir={workdir}: no run below it. {state}A run is a folder, at any depth, with config.json and '
    'eval/*.json; for example this makes one:\n' + '\n'.join(f'  {line}' for line in commands)
  )


def folders(workdir: Path) -> Iterator[Path]:
  """The folder and those below it that may be runs, through links, each once."""
  for folder, below, _ in files.walk(workdir):
    skipped = INSIDE if (folder / 'config.json').is_file() else set()
    skipped = skipped | ({REPORT} if folder == workdir else set())
    below[:] = sorted(b for b in below if b not in skipped and not b.startswith('.'))
    yield folder


def read_json(path: Path, remark: Callable[[str], None]) -> dict[str, Any] | None:
  """An object, or None with a remark (none if there is no file)."""
  try:
    content = json.loads(path.read_text())
    if isinstance(content, dict):
      return content
    remark(f'{path}: not a JSON object, left out')
  except FileNotFoundError:
    pass
  except (OSError, ValueError) as error:
    remark(f'{path}: damaged ({error}), left out')
  return None


def read_result(path: Path, remark: Callable[[str], None]) -> dict[str, Any] | None:
  """A result with metrics and protocol, or None with a remark."""
  result = read_json(path, remark)
  if result is None:
    return None
  for name, kind in ENTRIES.items():
    value = result.get(name)
    if value is None and name not in ('metrics', 'protocol'):
      continue
    if not isinstance(value, kind) or (value == {} and name == 'metrics'):
      remark(f'{path}: {name!r} is {shortened(repr(value), 40)}, left out of the table')
      return None
  return result


def published_of(config: Mapping[str, Any]) -> Published:
  """config.published; nothing in the configs of older runs."""
  given = section_of(config, 'published')
  numbers = {name: given.get(name) for name in ('fid', 'inception_score', 'inception_score_std')}
  numbers = {name: value for name, value in numbers.items() if is_number(value)}
  return Published(name=str(given.get('name') or ''), **numbers)


def records_of(found: Run) -> list[Record]:
  """The results of a run, as tables and plots take them."""
  config, several = found.config, len(found.results) > 1
  backbone = str(part_of(config, 'model', 'name') or '')
  names = {stem: str(result.get('name') or stem) for stem, result in found.results.items()}
  keys = {s: (names[s], canonical(result['protocol'])) for s, result in found.results.items()}
  made = []
  for stem, result in found.results.items():
    is_alone = list(keys.values()).count(keys[stem]) == 1
    baseline = section_of(result, 'real_baseline')
    optional = ('deviation', 'samples', 'parameters', 'images_per_s')
    made.append(
      Record(
        model=found.name,
        run=found.path,
        name=names[stem] if is_alone else stem,
        several=several,
        data=found.data_name,
        backbone=BACKBONES.get(backbone, backbone),
        latent=config.get('space') == 'latent',
        num_classes=config.get('num_classes') or 0,
        is_reconstruction=is_autoencoder(config),
        protocol=result['protocol'],
        metrics=result['metrics'],
        **{name: result[name] for name in optional if result.get(name) is not None},
        num_seeds=len(result.get('seeds') or [0]),
        published=published_of(config),
        real=section_of(baseline, 'metrics'),
        real_count=part_of(baseline, 'num_images') or None,
        warnings=tuple(map(str, result.get('warnings') or ())),
        time=str(result.get('time') or ''),
      )
    )
  return made


def denoising_of(found: Run, remark: Callable[[str], None]) -> Denoising | None:
  """The frames of the newest result that has some, or None with a remark."""
  labelled = zip(records_of(found), found.results.items())
  damaged = False
  for record, (stem, result) in sorted(labelled, key=lambda pair: pair[0].time, reverse=True):
    path = found.folder / 'samples' / str(result.get('name') or stem) / 'frames.npz'
    if path.exists():
      try:
        return read_frames(path, found, record.label)
      except Exception as error:  # Whatever is wrong with the file: one model less.
        remark(f'{path}: damaged ({error}), so it is not in the panel')
        damaged = True
  if not damaged:
    remark(f'{found.folder}: no samples/NAME/frames.npz of a result, so it is not in the panel')
  return None


def read_frames(path: Path, found: Run, label: str) -> Denoising:
  """frames.npz of a sample set. Raises: ValueError and others for what is not one."""
  with np.load(path, allow_pickle=False) as file:
    frames, labels = file['frames'], file['labels']
    times = file.get('t')
  if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] not in (1, 3):
    raise ValueError(f'frames are {frames.dtype} of shape {frames.shape}')
  if len(labels) != frames.shape[1] or (times is not None and times.shape != (len(frames),)):
    raise ValueError('labels and t do not fit the frames')
  if not frames.size:
    raise ValueError('no frames')
  names = found.data.get('label_names') or ()
  classes = [str(names[y]) if 0 <= y < len(names) else f'class {y}' for y in labels]
  return Denoising(label, frames, tuple(classes) if found.config.get('num_classes') else (), times)
