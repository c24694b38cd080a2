"""Writes metrics and previews: metrics.jsonl, TensorBoard if installed, Weights & Biases if configured."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import files, hosts, packages

HOST_LOGS = 'host-*.log'  # Files in logs/ that are not of one run: runtime/cluster.py writes them.
SKIPPED = 'skipped.jsonl'
KEPT_RUNS = 3  # Former runs of a work directory whose metrics stay.
RECORD_HEADER, CHECKSUM = 12, 4  # Bytes around each event: its length with a checksum, and its own.


def _numbers(scalars: Mapping[str, float]) -> dict[str, float | None]:
  """None stands for what JSON has no number for."""
  return {name: float(x) if np.isfinite(x) else None for name, x in scalars.items()}


def note_skipped(
  workdir: Path, step: int, scalars: Mapping[str, float], examples: Sequence[int]
) -> None:
  """Adds a line to DIR/skipped.jsonl for a step without an update: its numbers, and those of its examples."""
  path = workdir / SKIPPED
  with files.naming(path), open(path, 'a') as file:
    file.write(json.dumps({'step': step, **_numbers(scalars), 'examples': list(examples)}) + '\n')


class JsonLines:
  """Writes one JSON object a step with all scalars of one write."""

  def __init__(self, path: Path):
    self._path = path
    self._file = open(path, 'a', buffering=1)  # noqa: SIM115 (closed by close)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    with files.naming(self._path):
      self._file.write(json.dumps({'step': step, **_numbers(scalars)}) + '\n')

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Pictures are files of their own."""

  def flush(self) -> None:
    with files.naming(self._path):
      self._file.flush()

  def close(self) -> None:
    with files.naming(self._path):
      self._file.close()


class TensorBoard:
  """Writer of event files in the background. Raises: OSError that names their folder."""

  def __init__(self, folder: Path):
    from clu import metric_writers

    self._folder = folder
    self._writer = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(folder)))

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    with files.naming(self._folder):
      self._writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    with files.naming(self._folder):
      self._writer.write_images(step, images)

  def flush(self) -> None:
    with files.naming(self._folder):
      self._writer.flush()

  def close(self) -> None:
    with files.naming(self._folder):
      self._writer.close()


class WeightsAndBiases:
  """Writer to a W&B run that resumes with its work directory."""

  def __init__(self, workdir: Path, project: str, config: dict):
    import wandb

    self._wandb = wandb
    run_id = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:12]
    self._run = wandb.init(
      project=project, dir=workdir, id=run_id, name=workdir.name, resume='allow', config=config
    )

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({name: float(value) for name, value in scalars.items()}, step=step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    self._run.log({n: self._wandb.Image(x[0]) for n, x in images.items()}, step=step)

  def flush(self) -> None:
    """W&B uploads on its own."""

  def close(self) -> None:
    self._run.finish()


class Writers:
  """Writes to several destinations."""

  def __init__(self, writers: Sequence):
    self._writers = writers

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    for writer in self._writers:
      writer.write_images(step, images)

  def flush(self) -> None:
    for writer in self._writers:
      writer.flush()

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def has_tensorboard() -> bool:
  """Returns whether event files can be written, which takes clu, TensorFlow and TensorBoard."""
  return packages.is_installed('clu', 'tensorflow', 'tensorboard')


def keep_until(workdir: Path, step: int) -> None:
  """Drops what metrics.jsonl, skipped.jsonl and logs/ hold of steps that a resumed run writes again.

  At step 0 all of it belongs to another run, see _set_aside. Without TensorBoard logs/ stays as it is.
  """
  path = workdir / 'metrics.jsonl'
  _drop_lines_after(workdir / SKIPPED, step)
  if step == 0:
    _set_aside(path, workdir / 'logs')
    return
  _drop_lines_after(path, step)
  for events in (workdir / 'logs').glob('events.out.tfevents.*') if has_tensorboard() else ():
    _keep_events_until(events, step)
  for left in (workdir / 'logs').glob(
    '.events.out.tfevents.*.tmp'
  ):  # A process was killed just here.
    left.unlink()


def _drop_lines_after(path: Path, step: int) -> None:
  if path.exists():
    lines = path.read_text(errors='replace').splitlines()
    files.write(path, ''.join(f'{line}\n' for line in lines if _is_until(line, step)))


def _is_until(line: str, step: int) -> bool:
  """False for a line that a killed process left unfinished, too."""
  try:
    return json.loads(line)['step'] <= step
  except (ValueError, RecursionError, KeyError, TypeError):
    return False


def _set_aside(path: Path, logs: Path) -> None:
  """Renames the files of a former run to metrics-until-TIME.jsonl and logs-until-TIME.

  Of former runs the KEPT_RUNS longest stay; one that wrote no line leaves nothing.
  """
  events = [file for file in logs.glob('*') if not file.match(HOST_LOGS)]
  if not path.exists() or not path.stat().st_size:
    for file in events:
      file.unlink()
    path.unlink(missing_ok=True)
    _remove_if_empty(logs)
    return
  time = int(path.stat().st_mtime)
  while _aside(path, time).exists():
    time += 1
  # First the events: killed in between, the next start finds the metrics and the same TIME.
  for file in events:
    _aside(logs, time).mkdir(exist_ok=True)
    file.rename(_aside(logs, time) / file.name)
  _remove_if_empty(logs)
  path.rename(_aside(path, time))
  former = path.parent.glob(_aside(path, '*').name)
  for old in sorted(former, key=lambda old: old.stat().st_size)[:-KEPT_RUNS]:
    shutil.rmtree(_aside(logs, old.stem.rsplit('-', 1)[-1]), ignore_errors=True)
    old.unlink()


def _remove_if_empty(folder: Path) -> None:
  with contextlib.suppress(OSError):
    folder.rmdir()


def _aside(path: Path, time: int | str) -> Path:
  return path.with_stem(f'{path.stem}-until-{time}')


def _keep_events_until(path: Path, step: int) -> None:
  """Drops the events of steps after `step` from a TensorBoard file, and a torn end.

  A restart could be marked instead, but readers do not agree on which events that voids.
  """
  from google.protobuf.message import DecodeError
  from tensorboard.compat.proto.event_pb2 import Event

  content, kept, start = path.read_bytes(), [], 0
  while start + RECORD_HEADER < len(content):
    (length,) = struct.unpack_from('<Q', content, start)
    data, end = start + RECORD_HEADER, start + RECORD_HEADER + length + CHECKSUM
    if end > len(content):
      break
    try:
      if Event.FromString(content[data : end - CHECKSUM]).step <= step:
        kept.append(content[start:end])
    except DecodeError:
      break
    start = end
  if sum(map(len, kept)) < len(content):
    files.write(path, b''.join(kept))


def create_writer(workdir: Path, *, wandb_project: str, config: dict) -> Writers:
  """Opens all destinations on the first host; wandb_project '' leaves W&B out.

  Prints that TensorBoard is left out where it is not installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if not hosts.is_first():
    return Writers([])
  writers = [JsonLines(workdir / 'metrics.jsonl')]
  if has_tensorboard():
    writers.append(TensorBoard(workdir / 'logs'))
  else:
    print("no TensorBoard files: they need the extra 'tf' of diffusion_jax, see docs/install.md")
  if wandb_project:
    writers.append(WeightsAndBiases(workdir, wandb_project, config))
  return Writers(writers)


def require_wandb() -> None:
  """Raises InputError if W&B is configured and not installed."""
  import importlib.util

  if importlib.util.find_spec('wandb') is None:
    raise InputError(
      'config.logging.wandb_project is set, but the package wandb is not installed: '
      'pip install wandb, or leave the field empty'
    )
