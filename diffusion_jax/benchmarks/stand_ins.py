"""Random numbers in place of data and of the autoencoder's weights, where only speed matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.first_stage import FirstStage
from diffusion_jax.models.latents import Scaling


def with_random_inputs(experiment: Experiment, num_examples: int) -> Experiment:
  """The experiment with so many random training examples, and with a random autoencoder in latent space."""
  changed = dataclasses.replace(experiment)
  parts = {'train_data': random_examples(experiment, num_examples)}
  if experiment.is_latent:
    zeros = np.zeros(experiment.x0_shape[-1], np.float32)
    parts |= {
      'first_stage': random_autoencoder(experiment),
      'scaling': Scaling(zeros, np.float32(1)),
    }
  vars(changed).update(parts)  # In place of what the cached properties would read.
  return changed


def random_examples(experiment: Experiment, num_examples: int) -> Arrays:
  """Images (N, H, W, C) uint8, or in latent space posteriors (N, h, w, 2 z) float16, with labels."""
  rng, classes = np.random.default_rng(0), max(experiment.config.num_classes, 1)
  labels = np.arange(num_examples, dtype=np.int32) % classes
  names = tuple(f'class {i}' for i in range(classes))
  if not experiment.is_latent:
    images = rng.integers(0, 256, (num_examples, *experiment.image_shape), np.uint8)
    return Arrays(images, 'random', labels, names)
  height, width, channels = experiment.x0_shape
  posterior = rng.standard_normal((num_examples, height, width, 2 * channels), np.float32)
  return Arrays(posterior.astype(np.float16), 'random', labels, names, 'posterior')


def random_autoencoder(experiment: Experiment) -> FirstStage:
  """The autoencoder of config.vae with initial weights."""
  module, side = experiment.autoencoder, experiment.config.data.image_size
  latent = side // module.factor

  def init():
    images = jnp.zeros((1, side, side, module.image_channels))
    noise = jnp.zeros((1, latent, latent, module.embed_channels))
    return module.init(jax.random.key(0), images, noise)['params']

  return FirstStage(module, jax.device_get(jax.jit(init)()), 'random', 'random weights')
