"""The context that objectives are built from, and functions that they share.

An objective is a file with a class of its name, whose options are the config's and whose method
`build(context)` returns a training.objective.Objective. A variant of another objective builds that one
and replaces what differs: dataclasses.replace(Denoising(...).build(context), gradients=..., init=...).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.config.schema import Optimizer
from diffusion_jax.diffusion.pixels import from_uint8
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.time_sampling.uniform import Uniform
from diffusion_jax.models.latents import Scaling
from diffusion_jax.models.vae import AutoencoderKL, Posterior
from diffusion_jax.randomness import fold_in_each, normal_each
from diffusion_jax.training.objective import Batch, Metrics
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import ema_decay_at
from diffusion_jax.types import Array, TimeSampling


def _adamw(num_steps: int = 1000) -> Callable[..., optax.GradientTransformation]:
  return functools.partial(make_optimizer, **dataclasses.asdict(Optimizer()), total_steps=num_steps)


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
  """Everything an objective may build on. Parts that take time are functions, called only if needed.

  x0_shape: (H, W, C) of what diffuses. make_optimizer: that of config.optimizer; first_step is the step
  of the run at which it takes its first. dtype: of activations. ema_decay: late in training.
  """

  image_shape: tuple[int, int, int]
  x0_shape: tuple[int, int, int]
  process: Process | None = None
  make_model: Callable[[], nn.Module] | None = None
  make_autoencoder: Callable[[], AutoencoderKL] = AutoencoderKL
  make_optimizer: Callable[..., optax.GradientTransformation] = _adamw()
  time_sampling: TimeSampling = Uniform()
  num_classes: int = 0
  num_steps: int = 1000
  ema_decay: float = 0.9999
  flip: bool = False
  dtype: Any = jnp.float32
  seed: int = 0
  allow_pickle: bool = False

  def ema(self) -> Callable[[Array], Array]:
    """Update -> decay of the average that sampling uses."""
    return lambda step: ema_decay_at(step, self.ema_decay)


def x0_of(batch: Batch, scaling: Scaling | None, keys: Array, *, flip: bool) -> Array:
  """Returns x0 of a batch, (B,H,W,C) float32: images in [-1, 1], or fresh samples of normalised latents.

  keys: (B,). flip mirrors half of the images; the latents of mirrored images are examples of
  their own.
  """
  if 'posterior' in batch:
    posterior = Posterior.from_parameters(batch['posterior'])
    noise = normal_each(fold_in_each(keys, 0), posterior.mean.shape[1:])
    return scaling.normalise(posterior.sample(noise))
  x0 = from_uint8(batch['image'])
  if not flip:
    return x0
  flipped = jax.vmap(jax.random.bernoulli)(fold_in_each(keys, 0))  # (B,)
  return jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)


def gradients_of(losses: Callable[..., tuple[Array, Metrics]]) -> Callable:
  """Objective.gradients of a mean loss.

  losses: (parts, state, frozen, batch, draws) -> losses (B,) and further metrics.
  """

  def gradients(state, frozen, batch, draws, phase):
    del phase

    def mean_loss(parts):
      found, metrics = losses(parts, state, frozen, batch, draws)
      return jnp.mean(found), metrics

    (loss, metrics), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return grads, {'loss': loss, **metrics}

  return gradients
