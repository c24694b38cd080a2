"""Images to the noise that they would be sampled from, and what lies between two of them.

A deterministic sampler is run from data to noise (Song et al. 2021, arXiv:2010.02502, Section 5.4): its steps
hold for s > t too. A network never saw t = 0, so what it finds at the first time above 0 takes the data there.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import Guidance, make_denoiser
from diffusion_jax.diffusion.samplers.base import start_sampling
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.patience import alive
from diffusion_jax.training.state import Weights
from diffusion_jax.types import Array, Network


def require_deterministic(experiment: Experiment) -> None:
  """Raises: InputError for a sampler that draws noise."""
  if not experiment.generator().is_deterministic():
    section = experiment.config.sampler.section
    raise InputError(
      f'config.sampler.name: got {experiment.config.sampler.name!r}, allowed samplers that draw no noise, such '
      f"as 'ddim' or 'heun', and no option of {section} that draws it: inversion runs them backwards"
    )


def upwards(generator: Generator) -> Generator:
  """The process from the first time above 0 to noise, without guidance and cache."""
  times = generator.times[::-1]
  return dataclasses.replace(
    generator, times=times[times > 0], guidance=Guidance(), caching=None, num_frames=0
  )


def invert(up: Generator, network: Network, x0: Array, labels: Array) -> Array:
  """x0 (B,H,W,C), labels (B,) int32 -> the noise of unit variance that `process.start` scales; see upwards."""
  t, T = jnp.float32(up.times[0]), jnp.float32(up.times[-1])
  n = up.process.level(t, x0)
  denoise = make_denoiser(
    network,
    up.process,
    {'label': labels},
    null_label=up.null_label,
    guidance=up.guidance,
    clip_x0=up.clip_x0,
  )
  x_t = n.alpha * x0 + n.sigma * denoise(n.alpha * x0, t).eps
  state, indices = start_sampling(up.sampler, x_t, up.times), jnp.zeros(len(x0), jnp.uint32)
  if len(up.times) > 1:
    state = up.advance(network, indices, labels, state, up.steps, up.arguments)
  return state.x_t / jnp.maximum(up.process.level(T, x0).sigma, 1)


def compile_invert(experiment: Experiment, num_steps: int = 0) -> Callable:
  """(weights, x0 (N, *x0_shape), labels (N,)) -> noise (N, *x0_shape), on the host, for any N.

  Raises: as require_deterministic.
  """
  require_deterministic(experiment)
  up, devices = upwards(experiment.generator(num_steps=num_steps)), experiment.mesh
  cut, parts = mesh.batch_sharding(devices), experiment.objective.network_parts

  @jax.jit
  def run(parts, x0, labels):
    return invert(up, experiment.objective.network(parts), x0, labels)

  def inverted(weights: Weights, x0: np.ndarray, labels: np.ndarray) -> np.ndarray:
    count = len(x0)
    rows = np.minimum(np.arange(mesh.round_up(count, devices)), count - 1)
    placed = mesh.to_devices((np.asarray(x0)[rows], np.asarray(labels, np.int32)[rows]), cut)
    with alive(f'inverting {count:,} images'):
      return mesh.to_host(run(weights.only(parts).parts, *placed), devices)[:count]

  return inverted


def between(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
  """Noise (N, ...) twice -> (N, count, ...) on the great circles between them, ends included.

  Straight lines would leave the radius at which noise of that many dimensions lies.
  """
  a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (first, second))
  norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
  cosine = np.clip(np.sum(a * b, axis=1) / norms, -1, 1)
  angle = np.maximum(np.arccos(cosine), 1e-6)[:, None, None]  # At 0 the weights are w and 1 - w.
  w = np.linspace(0, 1, count)[None, :, None]
  weights = [np.sin(v * angle) / np.sin(angle) for v in (1 - w, w)]
  mixed = weights[0] * a[:, None] + weights[1] * b[:, None]
  return mixed.reshape(len(first), count, *first.shape[1:]).astype(np.float32)
