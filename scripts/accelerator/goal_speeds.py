"""Measures a goal by the package's own benchmarks, and PyTorch with torch.compile in turns beside it.

The systems are configs, so what is timed is what --mode=bench times: the compiled step, sampler, decoder or
feature network of an Experiment, on random numbers. Activations of both are bfloat16 on a GPU, parameters
float32; compilation and first runs are not timed, and each measurement ends when the device is done.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelerator import speeds, systems
from accelerator.goals import CFG_SCALE, GOALS, REPEATS, TORCH_PARTS, Goal
from diffusion_jax.benchmarks import against_torch, speed, timing
from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.config.fields import defaults, schema, updated
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import check_devices, create
from diffusion_jax.experiment.experiment import Experiment

# Two halvings fewer than KL-f8: latents of 32x32x4 at a cost that does not count beside the backbone's.
LATENTS = {
  'space': 'latent',
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'vae.z_channels': 4,
  'vae.embed_channels': 4,
}
# At full size both programs hold memory at the same time, and PyTorch recomputes nothing.
BATCHES = {
  'full': {
    **{'dit-s': 256, 'dit-b': 256, 'dit-l': 128, 'dit-xl': 64},
    **{'unet': 64, 'sample': 64, 'decode': 64, 'features': 100},
  },
  'tiny': {'dit-s': 4, 'unet': 4, 'sample': 2, 'decode': 2, 'features': 1},
}
BATCH_FIELDS = {'sample': 'sample.batch_size', 'autoencoder': 'vae.batch_size'}


def measure(size: str, name: str) -> dict[str, Any]:
  """Measures the goal of this name; the batch is halved for as long as memory does not suffice."""
  return speeds.fit(functools.partial(measured, size, name), BATCHES[size][name])


def measured(size: str, name: str, batch_size: int) -> dict[str, Any]:
  """images/s of ours and of torch.compile, or why there is none of the latter."""
  goal = GOALS[name]
  experiment = experiment_of(size, name, batch_size)
  check_devices(experiment)
  least = 1.0 if size == 'full' else 0.0
  why = not_comparable(goal)
  if not why:
    try:
      return beside_torch(experiment, goal, batch_size, least)
    except InputError as error:
      if any(text in str(error) for text in speeds.OUT_OF_MEMORY):
        raise
      why = str(error)
  ready = with_random_inputs(experiment, max(batch_size, 2))
  part = part_of(ready, goal.part, batch_size)
  jax.block_until_ready(part.run())
  times = [timing.steady_seconds(part.run, jax.block_until_ready, least) for _ in range(REPEATS)]
  facts = {'flops': part.flops, 'compile_s': part.compile_seconds}
  return row(part.batch_size, times, experiment.mesh.size, **facts) | {'torch': {'skipped': why}}


def not_comparable(goal: Goal) -> str:
  """Why PyTorch is not measured, or ''."""
  if goal.part not in TORCH_PARTS:
    return 'no such model'
  if not importlib.util.find_spec('torch'):
    return 'not installed'
  return '' if jax.default_backend() in ('gpu', 'cpu') else 'not on this device'


def beside_torch(
  experiment: Experiment, goal: Goal, batch_size: int, least: float
) -> dict[str, Any]:
  """In turns, in this run."""
  benchmark = against_torch.AgainstTorch(
    experiment, repeats=REPEATS, modes='compile', parts=(goal.part,), seconds=least
  )
  with tempfile.TemporaryDirectory() as folder:
    found = benchmark.measure(Path(folder))
  times = found['seconds'][goal.part]
  theirs = times[against_torch.THEIRS['compile']]
  facts = {
    'flops': found['flops'][goal.part],
    'compile_s': found['compile_seconds'][goal.part],
  }
  return row(batch_size, times[against_torch.OURS], experiment.mesh.size, **facts) | {
    'torch': {
      'version': found['torch'],
      'repeats_s': theirs,
      'images_per_s': batch_size / float(np.median(theirs)),
    }
  }


def part_of(experiment: Experiment, part: str, batch_size: int) -> speed.Part:
  """The last that the benchmark has of a part: guided sampling, decoding."""
  makers = {
    'train': speed.train_parts,
    'sample': speed.sample_parts,
    'autoencoder': speed.autoencoder_parts,
    'features': functools.partial(speed.feature_parts, batch_size=batch_size),
  }
  return list(makers[part](experiment))[-1][1]()


def row(
  batch_size: int, times: list[float], devices: int, flops: float, compile_s: float
) -> dict[str, Any]:
  """The entries of every goal, speeds for each device. flops: of a batch, on all of them."""
  seconds = float(np.median(times))
  return {
    'batch_size': batch_size,
    'seconds': seconds,
    'repeats_s': times,
    'devices': devices,
    'images_per_s': batch_size / seconds / devices,
    'flops_per_image': flops / batch_size,
    'flops_per_s': flops / seconds / devices,
    'compile_s': compile_s,
    'program_bytes': None,
    'peak_bytes': speeds.peak_bytes(),
  }


def experiment_of(size: str, name: str, batch_size: int) -> Experiment:
  """The config of a goal, read and checked."""
  goal = GOALS[name]
  field = BATCH_FIELDS.get(goal.part, 'train.batch_size')
  values = {**values_of(size, name), 'sample.batch_size': batch_size, field: batch_size}
  if goal.part == 'sample':
    values |= {'train.batch_size': batch_size, 'sample.num_samples': batch_size}
  return create(updated(Config, defaults(schema(Config)), values))


def values_of(size: str, name: str) -> Mapping[str, Any]:
  """The fields of a goal's config that differ from the defaults."""
  sizes, part = systems.SIZES[size], GOALS[name].part
  pixels = {'data.image_size': sizes.image_size, 'data.channels': 3}
  if name == 'unet':  # Without dropout and recomputation: PyTorch's has none.
    options = {**sizes.unet, 'dropout': 0.0, 'remat': 'none'}
    classes = systems.NUM_CLASSES['unet']
    backbone = {f'model.unet.{field}': value for field, value in options.items()}
    return {**pixels, 'num_classes': classes, 'model.name': 'unet', **backbone}
  if part == 'autoencoder':
    return {**pixels, 'space': 'latent', **{f'vae.{k}': v for k, v in sizes.vae.items()}}
  if part == 'features':
    return pixels
  letter = {'sample': 'b' if size == 'full' else 's'}.get(name, name.removeprefix('dit-'))
  hidden_size, depth, num_heads = sizes.dit[letter]
  return {
    **LATENTS,
    'data.image_size': 2 * sizes.latent_shape[0],  # Halved once.
    'data.channels': 3,
    'num_classes': systems.NUM_CLASSES['dit'],
    'model.dit.patch_size': 2,
    'model.dit.hidden_size': hidden_size,
    'model.dit.depth': depth,
    'model.dit.num_heads': num_heads,
    'sample.num_steps': sizes.sample_steps,
    'sample.cfg_scale': CFG_SCALE if part == 'sample' else 1.0,
  }
