"""--mode=sample: N images from a checkpoint, in parts that survive an interruption.

DIR/samples/NAME/ holds part-*.npz (images uint8 NHWC, labels, index), meta.json, grid.png and
denoising.gif. Sample i depends on the seed and on i alone, so a set can be finished, or enlarged,
with another batch size or on other devices.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import check_data, check_devices
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh, sample_set
from diffusion_jax.runtime.checkpoint import Restored, checksums
from diffusion_jax.stages.train import open_checkpoints
from diffusion_jax.types import PyTree

MAX_ROWS = 10  # Classes in the grid and the animation.


def run(experiment: Experiment, workdir: Path) -> Path:
  """Makes what is missing of the sample set. Returns: its folder."""
  require_diffusion(experiment)
  check_devices(experiment)
  check_data(experiment)
  folder = workdir / 'samples' / set_name(experiment)
  restored = load_checkpoint(experiment, workdir)
  sample, weights = experiment.config.sample, restored.state
  _ = experiment.decoder  # What is wrong with it is told before a folder is begun.
  meta = sample_set.claim(folder, identity(experiment, restored.step, weights))
  done = sample_set.stored_indices(folder)
  missing = np.setdiff1d(np.arange(sample.num_samples, dtype=np.uint32), done)
  print(
    f'{folder}: {len(missing):,} of {sample.num_samples:,} samples to make, from step '
    f'{restored.step}{" (EMA)" if sample.ema else ""}'
  )
  if len(missing):
    images_per_s = generate_parts(experiment, folder, weights, missing)
    meta.setdefault('images_per_s', images_per_s)
  draw_grid(experiment, folder)
  sample_set.write_json(folder / 'meta.json', {**meta, 'num_samples': len(done) + len(missing)})
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


def identity(experiment: Experiment, step: int, weights: dict[str, Any]) -> dict[str, Any]:
  """All that the images depend on."""
  parameters = f'{sum(checksums(params_of(weights)).values()) % 2**32:08x}'
  latents = {}
  if experiment.is_latent:
    shift, scale = jax.device_get(weights['scaling'])
    latents = {
      'autoencoder': experiment.config.vae.fingerprint,
      'latent_shift': shift.tolist(),
      'latent_scale': float(scale),
    }
  return {'step': step, 'parameters': parameters, **latents, **settings(experiment)}


def params_of(weights: dict[str, Any]) -> PyTree:
  """The backbone's among what load_checkpoint read."""
  return weights.get('ema_params', weights.get('params'))


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
    'data': config.data.fingerprint,
  }


def is_complete(experiment: Experiment, folder: Path) -> bool:
  """Whether all samples of these settings are stored; with checkpoint 'latest', of whatever step.

  Raises: InputError if the folder holds a set of other settings.
  """
  checkpoint = experiment.config.sample.checkpoint
  if checkpoint == 'best' or not (folder / 'meta.json').exists():
    return False  # Which step is best, only the checkpoints know: run looks there.
  step = {'step': int(checkpoint)} if checkpoint.isdigit() else {}
  sample_set.require_same(
    folder, sample_set.read_meta(folder)['identity'], {**step, **settings(experiment)}
  )
  wanted = np.arange(experiment.config.sample.num_samples)
  return bool(np.isin(wanted, sample_set.stored_indices(folder)).all())


def load_checkpoint(experiment: Experiment, workdir: Path) -> Restored:
  """Of the checkpoint that config.sample.checkpoint names: 'ema_params' or 'params', and 'scaling'.

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
    names = ['ema_params' if experiment.config.sample.ema else 'params']
    names += ['scaling'] if experiment.is_latent else []
    wanted = {name: getattr(experiment.abstract_state, name) for name in names}
    restored = checkpoints.restore(wanted, step, partial=True)
  finally:
    checkpoints.close()
  for damaged, reason in restored.damaged.items():
    print(f'checkpoint of step {damaged} is damaged ({reason}); using step {restored.step}')
  return restored


def generate_parts(
  experiment: Experiment, folder: Path, weights: dict[str, Any], missing: np.ndarray
) -> float:
  """Writes a part a batch, the picture's samples first. Returns: images/s, compiling aside."""
  size = mesh.round_up(experiment.config.sample.batch_size, experiment.mesh)
  picture = picture_indices(experiment, limit=size)
  gif = folder / 'denoising.gif'
  first = np.zeros(0, missing.dtype) if gif.exists() else picture.reshape(-1)
  order = np.concatenate([first, np.setdiff1d(missing, first)])
  generate = compile_generate(experiment, weights, picture.size)
  sharding = mesh.batch_sharding(experiment.mesh)
  seconds, batches = 0.0, 0
  with tqdm(total=len(order), unit='image', desc='sampling', mininterval=5) as bar:
    for start in range(0, len(order), size):
      index = order[start : start + size]
      labels = experiment.sample_labels(index)
      padding = (0, size - len(index))
      inputs = (np.pad(index, padding, 'edge'), np.pad(labels, padding, 'edge'))
      began = time.perf_counter()
      made, frames = generate(*mesh.to_devices(inputs, sharding))
      made = jax.device_get(made)
      seconds += time.perf_counter() - began
      batches += 1
      if not gif.exists():
        draw_animation(experiment, gif, weights, jax.device_get(frames), picture)
      new = np.isin(index, missing)
      sample_set.save_part(folder, index[new], made[: len(index)][new], labels[new])
      bar.update(len(index))
  return batches * size / seconds


def compile_generate(
  experiment: Experiment, weights: dict[str, Any], frame_examples: int
) -> Callable:
  """(indices, labels) -> images uint8 and x_t of animation frames, compiled for one batch."""
  size = mesh.round_up(experiment.config.sample.batch_size, experiment.mesh)
  generator = experiment.generator(experiment.config.sample.gif_frames, frame_examples)
  trainer, sharding = experiment.trainer, mesh.batch_sharding(experiment.mesh)

  def generate(params, scaling, decoder, indices, labels):
    x_0, frames = generator(trainer.network(params), indices, labels)
    return experiment.to_images(decoder, scaling, x_0), frames

  indices = jax.ShapeDtypeStruct((size,), np.uint32, sharding=sharding)
  labels = jax.ShapeDtypeStruct((size,), np.int32, sharding=sharding)
  fixed = (params_of(weights), weights.get('scaling'), experiment.decoder)
  compiled = jax.jit(generate).lower(*fixed, indices, labels).compile()
  return lambda indices, labels: compiled(*fixed, indices, labels)


def draw_animation(
  experiment: Experiment,
  path: Path,
  weights: dict[str, Any],
  frames: np.ndarray,
  picture: np.ndarray,
) -> None:
  """denoising.gif from x_t (F, N, *x0_shape) of the samples of a picture."""
  flat = frames.reshape(-1, *frames.shape[2:])
  padding = [(0, mesh.round_up(len(flat), experiment.mesh) - len(flat))] + [(0, 0)] * 3
  placed = mesh.to_devices(np.pad(flat, padding), mesh.batch_sharding(experiment.mesh))
  made = jax.jit(experiment.to_images)(experiment.decoder, weights.get('scaling'), placed)
  made = jax.device_get(made)[: len(flat)]
  drawn = made.reshape(len(frames), *picture.shape, *made.shape[1:])
  names, side = row_names(experiment, picture), images.MIN_SIDE_ANIMATED
  images.save_gif(path, [images.grid(frame, names, side) for frame in drawn])


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
  made, _ = sample_set.load(folder, int(picture.max()) + 1)
  drawn = images.grid(made[picture], row_names(experiment, picture))
  images.save_png(folder / 'grid.png', drawn)
