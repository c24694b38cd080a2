"""What a denoiser remembers from one step to the next, carried beside what the sampler carries."""

import dataclasses
from collections.abc import Callable

import numpy as np

from diffusion_jax.diffusion.guidance import RememberingDenoiser
from diffusion_jax.types import Array, PyTree, Sampler


@dataclasses.dataclass(frozen=True)
class Remembering:
  """A sampler whose steps take a RememberingDenoiser; first: x_T -> what the first step is given.

  A step remembers what its first call of the denoiser did; all its calls see the memory of the step before.
  That call must not stand in a branch of the step (lax.cond).
  """

  sampler: Sampler
  first: Callable[[Array], PyTree]

  def init(self, x_T: Array, times: np.ndarray) -> PyTree:
    """What the sampler carries, and the first memory."""
    return self.sampler.init(x_T, times), self.first(x_T)

  def evaluations(self, num_steps: int) -> int:
    """Those of the sampler."""
    return self.sampler.evaluations(num_steps)

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: RememberingDenoiser, carry: PyTree
  ) -> tuple[Array, PyTree]:
    """That of the sampler."""
    (inner, memory), made = carry, []

    def plain(x_t, t):
      prediction, new = denoise(x_t, t, memory)
      made.append(new)
      return prediction

    x_s, inner = self.sampler.step(keys, x_t, t, s, plain, inner)
    return x_s, (inner, made[0])
