"""Sample numbers and labels -> x_0: noise, denoiser and sampling loop put together.

Sample number i depends on (seed, i), its label and the settings, never on the batch it is made in.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.caching import Cache, Caching, caching_network, no_cache
from diffusion_jax.diffusion.guidance import Guidance, acts, make_denoiser, make_remembering
from diffusion_jax.diffusion.memory import Remembering
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers.base import (
  SamplingState,
  Steps,
  continue_sampling,
  start_sampling,
  steps_along,
)
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from diffusion_jax.types import Array, CachableNetwork, Network, Prediction, Sampler


class Arguments(NamedTuple):
  """What may change without compiling again: the seed () uint32, and the numbers of guidance."""

  seed: Array
  guidance: Guidance


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
  """A sampling process. times: (N+1,), noise first; shape: (H, W, C).

  seed and guidance are the values of `arguments`, which compiled programs take; all else is static.
  autoguided: whether guidance needs a guide. caching: None for none; residual: (N, d) of what blocks add.
  """

  process: Process
  sampler: Sampler
  times: np.ndarray
  shape: tuple[int, int, int]
  seed: int
  null_label: int
  guidance: Guidance
  clip_x0: bool
  guide_channels: int = 0
  autoguided: bool = False
  caching: Caching | None = None
  residual: tuple[int, ...] = ()
  num_frames: int = 0
  frame_examples: int = 0

  @property
  def arguments(self) -> Arguments:
    """Its seed, of which random keys take the last 32 bits, and its guidance, as NumPy scalars."""
    guidance = jax.tree.map(lambda x: np.asarray(x, np.float32), self.guidance)
    return Arguments(np.asarray(self.seed % 2**32, np.uint32), guidance)

  @property
  def kind(self) -> Hashable:
    """What its compiled programs depend on; while both live, two of a kind share them."""
    return (
      *(id(self.process), id(self.sampler), self.times.tobytes(), self.shape, self.null_label),
      *(self.clip_x0, self.guide_channels, self.autoguided, self.caching),
      *(self.num_frames, self.frame_examples),
      jax.tree.structure(self.arguments),
    )

  @property
  def steps(self) -> Steps:
    """All steps, on the host."""
    return steps_along(self.times.astype(np.float32), self.num_frames)

  def evaluations(self) -> float:
    """Passes of networks for one sample: calls of the denoiser, those that are guided twice.

    With caching, the share of steps that run the blocks of all.
    """
    num_steps, guidance = len(self.times) - 1, self.guidance
    calls = self.sampler.evaluations(num_steps)
    if self.caching:
      calls *= self.caching.share(num_steps)
    if guidance.scale is None:
      return calls
    if guidance.interval is None:
      return 2 * calls
    return calls + int(acts(self.process.schedule(self.call_times()), guidance.interval).sum())

  def call_times(self) -> np.ndarray:
    """The times at which the denoiser is called, (calls,) float32, noise first.

    Takes all steps with one number, and a denoiser that notes the time.
    """
    noted = []

    def denoise(x_t, t):
      jax.experimental.io_callback(lambda t: noted.append(np.float32(t)), None, t)
      return Prediction(x_t, x_t, x_t)

    def run(x_T):
      state = start_sampling(self.sampler, x_T, self.times)
      keys = example_keys(purpose_key(0, 'sample'), jnp.arange(1))
      return continue_sampling(self.sampler, denoise, keys, state, steps_along(self.times))

    jax.block_until_ready(jax.jit(run)(jnp.ones((1, 1, 1, 1))))
    jax.effects_barrier()
    return np.sort(np.asarray(noted))[::-1]

  def is_deterministic(self) -> bool:
    """Whether the sampler's steps draw no noise: one number comes out the same for other keys."""
    steps = steps_along(self.times)

    def denoise(x_t, t):
      n = self.process.level(t, x_t)
      return Prediction(n.alpha * x_t, n.sigma * x_t, jnp.zeros_like(x_t))

    def run(seed):
      state = start_sampling(self.sampler, jnp.ones((1, 1, 1, 1)), self.times)
      keys = _keys(seed, jnp.arange(1))
      return continue_sampling(self.sampler, denoise, keys, state, steps).x_t

    return bool(jnp.array_equal(*jax.jit(jax.vmap(run))(jnp.arange(2))))

  def noise(self, indices: Array, seed: Array) -> Array:
    """indices (B,) uint32, seed () uint32 -> standard normal (B,H,W,C) float32."""
    return normal_each(fold_in_each(_keys(seed, indices), 0), self.shape)

  def start(self, noise: Array) -> SamplingState:
    """The state of standard normal noise (B,H,W,C)."""
    x_T = self.process.start(noise, jnp.float32(self.times[0]))
    examples = min(self.frame_examples, len(noise))
    return start_sampling(
      self._sampler, x_T, self.times, num_frames=self.num_frames, frame_examples=examples
    )

  def advance(
    self,
    network: Network | CachableNetwork,
    indices: Array,
    labels: Array,
    state: SamplingState,
    steps: Steps,
    arguments: Arguments,
    guide: Network | None = None,
  ) -> SamplingState:
    """The state after some of the steps: indices (B,) uint32, labels (B,) int32.

    network: one of Objective.cachable with caching. Raises: ValueError without the guide that guidance needs.
    """
    if self.autoguided and guide is None and self.guidance.scale is not None:
      raise ValueError('guide: got None, allowed a network: this is autoguidance')
    make = functools.partial(
      make_remembering if self._remembers else make_denoiser,
      process=self.process,
      condition={'label': labels},
      null_label=self.null_label,
      guidance=arguments.guidance,
      clip_x0=self.clip_x0,
      guide_channels=self.guide_channels,
      guide=guide if self.autoguided else None,
    )

    def denoise(x_t, t, memory):
      made, (guiding, cache) = [], memory
      own = caching_network(network, self.caching, cache, made) if self.caching else network
      prediction, guiding = make(own)(x_t, t, guiding)
      return prediction, (guiding, made[0] if made else None)

    keys = fold_in_each(_keys(arguments.seed, indices), 1)
    denoise = denoise if self._remembers else make(network)
    return continue_sampling(self._sampler, denoise, keys, state, steps)

  @property
  def _remembers(self) -> bool:
    return self.guidance.momentum is not None or self.caching is not None

  @property
  def _sampler(self) -> Sampler:
    return Remembering(self.sampler, self._first_memory) if self._remembers else self.sampler

  def _first_memory(self, x_T: Array) -> tuple[Array | None, Cache | None]:
    """Of guidance, and of caching."""
    guiding = cache = None
    if self.guidance.momentum is not None:
      guiding = jnp.zeros_like(x_T[..., : self.guide_channels or self.shape[-1]])
    if self.caching:
      rows = 1 if self.guidance.scale is None else 2  # With and without labels.
      cache = no_cache(self.caching, (len(x_T), rows, *self.residual))
    return guiding, cache

  def __call__(self, network: Network, indices: Array, labels: Array) -> tuple[Array, Array]:
    """indices (B,) uint32, labels (B,) int32 -> x_0 (B,H,W,C) float32 and frames.

    frames: (num_frames, min(frame_examples, B), H,W,C), noise first.
    """
    arguments = self.arguments
    state = self.start(self.noise(indices, arguments.seed))
    state = self.advance(network, indices, labels, state, self.steps, arguments)
    return state.x_t, state.frames


def _keys(seed: Array, indices: Array) -> Array:
  return example_keys(purpose_key(seed, 'sample'), indices)
