"""Where metrics and preview images go: metrics.jsonl, TensorBoard, and Weights & Biases if asked."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffusion_jax.errors import InputError


class JsonLines:
  """clu-style writer: one JSON object a step with all scalars of one write."""

  def __init__(self, path: Path):
    self._file = open(path, 'a', buffering=1)  # noqa: SIM115 (closed by close)

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    values = {n: float(v) if np.isfinite(v) else None for n, v in scalars.items()}
    self._file.write(json.dumps({'step': step, **values}) + '\n')

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Pictures are files of their own."""

  def flush(self) -> None:
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class WeightsAndBiases:
  """clu-style writer to a W&B run that resumes with its work directory."""

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


def keep_metrics_until(path: Path, step: int) -> None:
  """Drops the lines of steps after `step`, which a resumed run writes again; a torn last line too.

  At step 0 the whole file belongs to another run: it is renamed.
  """
  if not path.exists():
    return
  if step == 0:
    path.rename(path.with_stem(f'{path.stem}-until-{int(path.stat().st_mtime)}'))
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      if json.loads(line)['step'] <= step:
        kept.append(line + '\n')
    except (json.JSONDecodeError, KeyError, TypeError):
      continue
  temporary = path.with_suffix('.tmp')
  temporary.write_text(''.join(kept))
  os.replace(temporary, path)


def create_writer(workdir: Path, *, wandb_project: str, config: dict):
  """A clu MultiWriter over all destinations; wandb_project '' leaves W&B out."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  from clu import metric_writers

  writers = [
    JsonLines(workdir / 'metrics.jsonl'),
    metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir / 'logs'))),
  ]
  if wandb_project:
    writers.append(WeightsAndBiases(workdir, wandb_project, config))
  return metric_writers.MultiWriter(writers)


def require_wandb() -> None:
  """Raises: InputError if W&B is asked for and not installed."""
  import importlib.util

  if importlib.util.find_spec('wandb') is None:
    raise InputError(
      'config.logging.wandb_project is set, but the package wandb is not installed: '
      'pip install wandb, or leave the field empty'
    )
