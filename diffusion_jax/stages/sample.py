"""--mode=sample: N images from a checkpoint, in parts that survive an interruption.

DIR/samples/NAME/ holds part-*.npz (images uint8 NHWC, labels, index), meta.json, grid.png and
denoising.gif. Sample i depends on the seed and on i alone, so a set can be finished, or enlarged,
with another batch size or on other devices.
"""

import json
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment.experiment import Experiment, check_data, check_devices
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.checkpoint import Restored, checksums
from diffusion_jax.stages.train import open_checkpoints

MAX_ROWS = 10  # Classes in the grid and the animation.


def run(experiment: Experiment, workdir: Path) -> Path:
  """Makes what is missing of the sample set. Returns: its folder."""
  require_diffusion(experiment)
  check_devices(experiment)
  check_data(experiment)
  folder = workdir / 'samples' / set_name(experiment)
  restored = load_checkpoint(experiment, workdir)
  sample = experiment.config.sample
  params = restored.state.ema_params if sample.ema else restored.state.params
  meta = claim(folder, identity(experiment, restored.step, params))
  done = stored_indices(folder)
  missing = np.setdiff1d(np.arange(sample.num_samples, dtype=np.uint32), done)
  print(
    f'{folder}: {len(missing):,} of {sample.num_samples:,} samples to make, from step '
    f'{restored.step}{" (EMA)" if sample.ema else ""}'
  )
  if len(missing):
    images_per_s = generate_parts(experiment, folder, params, missing)
    meta.setdefault('images_per_s', images_per_s)
  draw_grid(experiment, folder)
  write_json(folder / 'meta.json', {**meta, 'num_samples': len(done) + len(missing)})
  print(f'done: grid.png, denoising.gif and {len(done) + len(missing):,} samples in {folder}')
  return folder


def require_diffusion(experiment: Experiment) -> None:
  """Raises: InputError for a work directory of an autoencoder, which makes no images of its own."""
  if experiment.config.task != 'diffusion':
    raise InputError(
      f'config.task: this work directory trains an {experiment.config.task}, which has no samples; '
      'its reconstructions are in previews/, its metrics in metrics.jsonl'
    )


def set_name(experiment: Experiment) -> str:
  """config.sample.name, or sampler, steps and guidance, as in 'ddim50-cfg2'."""
  sample = experiment.config.sample
  default = f'{experiment.config.sampler.name}{sample.num_steps}-cfg{sample.cfg_scale:g}'
  return sample.name or default


def identity(experiment: Experiment, step: int, params) -> dict[str, Any]:
  """All that the images depend on."""
  parameters = f'{sum(checksums(params).values()) % 2**32:08x}'
  return {'step': step, 'parameters': parameters, **settings(experiment)}


def settings(experiment: Experiment) -> dict[str, Any]:
  """What the images depend on besides the parameters."""
  config, sample = experiment.config, experiment.config.sample
  return {
    'ema': sample.ema,
    'dtype': np.dtype(experiment.dtype).name,
    'seed': sample.seed,
    'sampler': config.sampler.name,
    **{f'sampler.{name}': value for name, value in config.sampler.options.items()},
    'num_steps': sample.num_steps,
    'spacing': sample.spacing,
    'cfg_scale': sample.cfg_scale,
    'clip_x0': sample.clip_x0,
    'labels': list(sample.labels) or 'balanced',
    'data': experiment.meta['fingerprint'],
  }


def claim(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
  """The folder's meta.json, written if it is new.

  Raises: InputError if the folder holds another set, DamagedError if meta.json is not readable.
  """
  path = folder / 'meta.json'
  folder.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    write_json(path, {'identity': wanted})
  meta = read_meta(folder)
  require_same(folder, meta['identity'], wanted)
  return meta


def read_meta(folder: Path) -> dict[str, Any]:
  """meta.json of a sample set. Raises: DamagedError if it is not readable."""
  path = folder / 'meta.json'
  try:
    meta = json.loads(path.read_text())
    return {**meta, 'identity': dict(meta['identity'])}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DamagedError(f'{path}: not a sample set description; delete {folder}') from error


def require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
  """Raises: InputError that names every entry of `wanted` that the set has otherwise."""
  differing = [key for key in wanted if found.get(key) != wanted[key]]
  if differing:
    lines = [f'  {key}: {found.get(key)!r}, asked {wanted[key]!r}' for key in differing]
    raise InputError(
      f'{folder} holds a set that was made otherwise:\n' + '\n'.join(lines) + '\n'
      'choose another --config.sample.name, or delete the folder'
    )


def is_complete(experiment: Experiment, folder: Path) -> bool:
  """Whether all samples of these settings are stored; with checkpoint 'latest', of whatever step.

  Raises: InputError if the folder holds a set of other settings.
  """
  checkpoint = experiment.config.sample.checkpoint
  if checkpoint == 'best' or not (folder / 'meta.json').exists():
    return False  # Which step is best, only the checkpoints know: run looks there.
  step = {'step': int(checkpoint)} if checkpoint.isdigit() else {}
  require_same(folder, read_meta(folder)['identity'], {**step, **settings(experiment)})
  wanted = np.arange(experiment.config.sample.num_samples)
  return bool(np.isin(wanted, stored_indices(folder)).all())


def load_checkpoint(experiment: Experiment, workdir: Path) -> Restored:
  """The checkpoint that config.sample.checkpoint names.

  Raises: InputError if it does not exist.
  """
  checkpoints = open_checkpoints(experiment, workdir, read_only=True)
  try:
    steps, wanted = checkpoints.steps(), experiment.config.sample.checkpoint
    step = checkpoints.best_step() if wanted == 'best' else None
    if wanted.isdigit():
      step = int(wanted)
    if not steps or (step not in steps and wanted != 'latest'):
      raise InputError(
        f'config.sample.checkpoint: got {wanted!r}, {checkpoints.directory} has {steps}'
      )
    restored = checkpoints.restore(experiment.abstract_state, step)
  finally:
    checkpoints.close()
  for damaged, reason in restored.damaged.items():
    print(f'checkpoint of step {damaged} is damaged ({reason}); using step {restored.step}')
  return restored


def generate_parts(experiment: Experiment, folder: Path, params, missing: np.ndarray) -> float:
  """Writes a part a batch, the picture's samples first. Returns: images/s, compiling aside."""
  size = mesh.round_up(experiment.config.sample.batch_size, experiment.mesh)
  picture = picture_indices(experiment, limit=size)
  gif = folder / 'denoising.gif'
  first = np.zeros(0, missing.dtype) if gif.exists() else picture.reshape(-1)
  order = np.concatenate([first, np.setdiff1d(missing, first)])
  generate = compile_generate(experiment, params, picture.size)
  sharding = mesh.batch_sharding(experiment.mesh)
  seconds, batches = 0.0, 0
  with tqdm(total=len(order), unit='image', desc='sampling', mininterval=5) as bar:
    for start in range(0, len(order), size):
      index = order[start : start + size]
      labels = experiment.sample_labels(index)
      padding = (0, size - len(index))
      inputs = (np.pad(index, padding, 'edge'), np.pad(labels, padding, 'edge'))
      began = time.perf_counter()
      made, frames = generate(params, *mesh.to_devices(inputs, sharding))
      made = jax.device_get(made)
      seconds += time.perf_counter() - began
      batches += 1
      if not gif.exists():
        frames = jax.device_get(frames)
        frames = frames.reshape(len(frames), *picture.shape, *frames.shape[2:])
        names, side = row_names(experiment, picture), images.MIN_SIDE_ANIMATED
        images.save_gif(gif, [images.grid(frame, names, side) for frame in frames])
      new = np.isin(index, missing)
      save_part(folder, index[new], made[: len(index)][new], labels[new])
      bar.update(len(index))
  return batches * size / seconds


def compile_generate(experiment: Experiment, params, frame_examples: int) -> Callable:
  """(params, indices, labels) -> images and animation frames, compiled for one batch."""
  size = mesh.round_up(experiment.config.sample.batch_size, experiment.mesh)
  generator = experiment.generator(experiment.config.sample.gif_frames, frame_examples)
  trainer, sharding = experiment.trainer, mesh.batch_sharding(experiment.mesh)

  def generate(params, indices, labels):
    return generator.images(trainer.network(params), indices, labels)

  indices = jax.ShapeDtypeStruct((size,), np.uint32, sharding=sharding)
  labels = jax.ShapeDtypeStruct((size,), np.int32, sharding=sharding)
  return jax.jit(generate).lower(params, indices, labels).compile()


def picture_indices(experiment: Experiment, limit: int = MAX_ROWS * 100) -> np.ndarray:
  """The samples of a picture, `limit` at most: (rows, columns) uint32, a row a label.

  With a single label, or none, the first samples fill the rows.
  """
  sample = experiment.config.sample
  labels = experiment.sample_labels(np.arange(sample.num_samples))
  distinct = np.unique(labels)
  if len(distinct) == 1:
    count = min(MAX_ROWS * sample.grid_columns, limit, len(labels))
    columns = min(sample.grid_columns, count)
    return np.arange(count // columns * columns, dtype=np.uint32).reshape(-1, columns)
  rows = [np.flatnonzero(labels == label) for label in distinct[: min(MAX_ROWS, limit)]]
  columns = min(sample.grid_columns, limit // len(rows), *map(len, rows))
  return np.stack([row[:columns] for row in rows]).astype(np.uint32)


def row_names(experiment: Experiment, picture: np.ndarray) -> list[str]:
  """The class of every row, or nothing if the rows are not classes."""
  labels = experiment.sample_labels(picture[:, 0])
  if experiment.config.num_classes == 0 or len(np.unique(labels)) < len(labels):
    return []
  return [experiment.label_names[label] for label in labels]


def draw_grid(experiment: Experiment, folder: Path) -> None:
  """grid.png from the stored samples."""
  picture = picture_indices(experiment)
  made, _ = load(folder, int(picture.max()) + 1)
  drawn = images.grid(made[picture], row_names(experiment, picture))
  images.save_png(folder / 'grid.png', drawn)


def save_part(folder: Path, index: np.ndarray, made: np.ndarray, labels: np.ndarray) -> None:
  """part-INDEX.npz, named by its first sample, written beside and renamed."""
  if not len(index):
    return
  path = folder / f'part-{index[0]:08d}.npz'
  temporary = path.with_suffix('.tmp')
  with open(temporary, 'wb') as file:
    np.savez(file, images=made, labels=labels, index=index)
  os.replace(temporary, path)


def stored_indices(folder: Path) -> np.ndarray:
  """The numbers of the samples that are there, sorted."""
  found = [_read(path)['index'] for path in sorted(folder.glob('part-*.npz'))]
  return np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint32)


def load(folder: Path, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
  """Samples 0..num_samples - 1 in order: images (N,H,W,C) uint8, labels (N,) int32.

  Raises: InputError if some are missing, DamagedError if a part is not readable.
  """
  parts = [_read(path) for path in sorted(folder.glob('part-*.npz'))]
  index = np.concatenate([part['index'] for part in parts]) if parts else np.zeros(0, int)
  order = np.argsort(index)
  if not np.array_equal(index[order][:num_samples], np.arange(num_samples)):
    raise InputError(f'{folder}: {len(index)} samples, {num_samples} wanted; run --mode=sample')
  chosen = order[:num_samples]
  made, labels = (np.concatenate([part[name] for part in parts]) for name in ('images', 'labels'))
  return made[chosen], labels[chosen]


def _read(path: Path) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in ('images', 'labels', 'index')}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
    raise DamagedError(f'{path}: damaged ({error}); delete it and run --mode=sample') from error


def write_json(path: Path, content: dict[str, Any]) -> None:
  """Indented, written beside and renamed."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(content, indent=2) + '\n')
  os.replace(temporary, path)
