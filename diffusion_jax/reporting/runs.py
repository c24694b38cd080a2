"""Reads what a run holds for a report: its results and the frames of its samples.

A file that cannot be read is left out with a remark: a report of the others is worth more than none.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.reporting.panel import Denoising
from diffusion_jax.reporting.records import Record, Run, canonical
from diffusion_jax.reporting.tables import shortened

# The entries that a report needs of a result, with their types.
ENTRIES = {
  **dict.fromkeys(('metrics', 'protocol', 'deviation', 'samples'), dict),
  **{'name': str, 'seeds': list, 'warnings': list, 'time': str},
  **{'parameters': int | None, 'images_per_s': int | float | None},
}


def read_json(path: Path, remark: Callable[[str], None]) -> dict[str, Any] | None:
  """Reads an object; returns None with a remark if the file holds none, without one if there is no file."""
  try:
    content = json.loads(path.read_text())
    if isinstance(content, dict):
      return content
    remark(f'{path}: not a JSON object, left out')
  except FileNotFoundError:
    pass
  except (OSError, ValueError, RecursionError) as error:
    remark(f'{path}: damaged ({error}), left out')
  return None


def read_result(path: Path, remark: Callable[[str], None]) -> dict[str, Any] | None:
  """Reads a result; returns None with a remark if it lacks one of ENTRIES, or any metric."""
  result = read_json(path, remark)
  if result is None:
    return None
  for name, kind in ENTRIES.items():
    value = result.get(name)
    if not isinstance(value, kind) or (value == {} and name == 'metrics'):
      remark(f'{path}: {name!r} is {shortened(repr(value), 40)}, left out of the table')
      return None
  return result


def records_of(run: Run) -> list[Record]:
  """The results of a run. Two of the same name and protocol are called by their files."""
  keys = {s: (result['name'], canonical(result['protocol'])) for s, result in run.results.items()}
  made = []
  for stem, result in run.results.items():
    is_alone = list(keys.values()).count(keys[stem]) == 1
    made.append(Record(run, result['name'] if is_alone else stem, result))
  return made


def denoising_of(run: Run, remark: Callable[[str], None]) -> Denoising | None:
  """The frames of the newest result that has some, or None with a remark."""
  damaged = False
  for record in sorted(records_of(run), key=lambda r: r.result['time'], reverse=True):
    path = run.folder / 'samples' / record.result['name'] / 'frames.npz'
    if path.exists():
      try:
        return read_frames(path, record)
      except Exception as error:  # Whatever is wrong with the file: one model less.
        remark(f'{path}: damaged ({error}), so it is not in the panel')
        damaged = True
  if not damaged:
    remark(f'{run.folder}: no samples/NAME/frames.npz of a result, so it is not in the panel')
  return None


def read_frames(path: Path, record: Record) -> Denoising:
  """Reads frames.npz of a sample set. Raises: ValueError and others if it is not one."""
  with np.load(path, allow_pickle=False) as file:
    frames, labels, times = file['frames'], file['labels'], file['t']
  if frames.ndim != 5 or frames.dtype != np.uint8 or frames.shape[-1] not in (1, 3):
    raise ValueError(f'frames are {frames.dtype} of shape {frames.shape}')
  if len(labels) != frames.shape[1] or times.shape != (len(frames),):
    raise ValueError('labels and t do not fit the frames')
  if not frames.size:
    raise ValueError('no frames')
  names = record.run.data.get('label_names') or ()
  classes = [str(names[y]) if 0 <= y < len(names) else f'class {y}' for y in labels]
  conditional = record.run.config['num_classes'] > 0
  return Denoising(record.label, frames, tuple(classes) if conditional else (), times)
