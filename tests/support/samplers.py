"""A whole run of a sampler, in one call."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers.base import continue_sampling, start_sampling, steps_along
from diffusion_jax.types import Array, Denoiser, Sampler


def run_sampler(
  sampler: Sampler,
  denoise: Denoiser,
  x_T: Array,
  keys: Array,
  times: np.ndarray,
  *,
  num_frames: int = 0,
  frame_examples: int = 0,
) -> tuple[Array, Array]:
  """From noise x_T (B,H,W,C) along times (N+1,), noise first; keys (B,), one an example.

  Returns: (x_0, frames) with frames (num_frames, frame_examples, H,W,C): evenly spaced states of
  the batch's first examples.
  """
  state = start_sampling(sampler, x_T, times, num_frames=num_frames, frame_examples=frame_examples)
  state = continue_sampling(sampler, denoise, keys, state, steps_along(times, num_frames))
  return state.x_t, state.frames


def run_by_steps(
  sampler: Sampler, denoise: Denoiser, x_T: Array, keys: Array, grids: Sequence[np.ndarray]
) -> list[np.ndarray]:
  """x_0 of run_sampler along each of several grids of times, by one compiled step for all of them."""
  advance = jax.jit(lambda state, step: continue_sampling(sampler, denoise, keys, state, step))
  ends = []
  for times in grids:
    state = start_sampling(sampler, jnp.asarray(x_T), times)
    for step in steps_along(times).cut(1):
      state = advance(state, step)
    ends.append(np.asarray(state.x_t))
  return ends
