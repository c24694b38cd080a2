"""The negative log-likelihood of held-out images under a trained model, in bits a dimension."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.diffusion.guidance import Guidance, make_denoiser
from diffusion_jax.diffusion.likelihood import (
  LEVEL,
  Path,
  advance_path,
  bits_per_dimension,
  end_path,
  flow_times,
  start_path,
)
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.randomness import example_keys, fold_in_each, purpose_key
from diffusion_jax.runtime import hosts, mesh
from diffusion_jax.training.state import Weights
from diffusion_jax.types import Array


def protocol(experiment: Experiment) -> dict[str, Any]:
  """Returns what the number depends on, beside the model."""
  config, source = experiment.config, experiment.datasets.images('holdout')
  return {
    'num_images': min(config.eval.nll_num_images, source.num_examples),
    'num_steps': config.eval.nll_num_steps,
    'seed': config.sample.seed,
    'images': source.fingerprint,
  }


def measure(experiment: Experiment, weights: Weights) -> dict[str, float]:
  """{'nll', 'nll_std'}: the mean over config.eval.nll_num_images, and the standard error of that mean.

  Image i is dequantised and probed by draws of (config.sample.seed, i), and conditioned on its label.
  """
  config, devices = experiment.config, experiment.mesh
  source, asked = experiment.datasets.images('holdout'), protocol(experiment)
  count = asked['num_images']
  chosen = np.linspace(0, source.num_examples - 1, count).round().astype(np.int32)
  size = mesh.round_up(min(count, config.sample.batch_size or count), devices)
  local, cut = mesh.local_rows(devices, size), mesh.batch_sharding(devices)
  times = np.float32(flow_times(experiment.schedule, asked['num_steps']))
  begin, advance = jax.jit(functools.partial(_begin, experiment)), _advance(experiment)
  found = []
  with tqdm(total=count, unit='image', desc='nll', disable=not hosts.is_first()) as bar:
    for first in range(0, count, size):
      numbers = chosen[np.minimum(first + np.arange(size), count - 1)]
      read = source.read(numbers[local])
      index, images, labels = mesh.to_devices(
        (numbers[local], read['image'], np.asarray(read['label'], np.int32)), cut
      )
      path, probe = begin(times[0], index, images)
      # The host steps: on CPU gradients of convolutions are slow inside a loop.
      for t, s in itertools.pairwise(times):
        path = advance(weights.parts, labels, probe, path, t, s)
      values = bits_per_dimension(end_path(path), path.x[0].size)
      found.append(mesh.to_host(values, devices)[: count - first])
      bar.update(len(found[-1]))
  values = np.concatenate(found).astype(np.float64)
  error = values.std(ddof=1) / np.sqrt(count) if count > 1 else float('nan')
  return {'nll': float(values.mean()), 'nll_std': float(error)}


def _begin(experiment: Experiment, t: Array, index: Array, images: Array) -> tuple[Path, Array]:
  """The path of images uint8, dequantised uniformly, with a sign a pixel."""
  keys = example_keys(purpose_key(experiment.config.sample.seed, 'nll'), index)
  shape = images.shape[1:]
  noise = jax.vmap(lambda key: jax.random.uniform(key, shape))(fold_in_each(keys, 0))
  probe = jax.vmap(lambda key: jax.random.rademacher(key, shape, jnp.float32))(
    fold_in_each(keys, 1)
  )
  return start_path(experiment.schedule, t, LEVEL * (images + noise) - 1), probe


def _advance(experiment: Experiment):
  """(parts, labels, probe, path, t, s) -> path, compiled."""

  def advance(parts, labels, probe, path, t, s):
    denoise = make_denoiser(
      experiment.objective.network(parts),
      experiment.process,
      {'label': labels},
      null_label=experiment.config.num_classes,
      guidance=Guidance(),
      clip_x0=False,
    )
    return advance_path(denoise, experiment.schedule, probe, path, t, s)

  return jax.jit(advance, donate_argnames='path')
