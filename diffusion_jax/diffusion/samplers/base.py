"""The one sampling loop: every sampler is a `step` inside this `lax.scan`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.randomness import fold_in_each
from diffusion_jax.types import Array, Denoiser, PyTree, Sampler


def frame_slots(num_steps: int, num_frames: int) -> np.ndarray:
  """Which frame each of the states 0..num_steps is: (num_steps + 1,) int32, num_frames for none.

  Frames are evenly spaced over the steps; the first is the noise, the last the result.
  Raises: ValueError for more frames than there are states.
  """
  if num_frames > num_steps + 1:
    raise ValueError(f'num_frames: got {num_frames}, allowed up to num_steps + 1 = {num_steps + 1}')
  slots = np.full(num_steps + 1, num_frames, np.int32)
  if num_frames:
    wanted = np.round(np.linspace(0, num_steps, num_frames)).astype(int)
    slots[wanted] = np.arange(num_frames)
  return slots


class SamplingState(NamedTuple):
  """x_t (B,H,W,C), the sampler's carry, and the frames so far: (num_frames, frame_examples, H,W,C)."""

  x_t: Array
  carry: PyTree
  frames: Array


class Steps(NamedTuple):
  """Steps from t to s: four arrays (N,). number: from 0. slot: which frame the result is."""

  number: np.ndarray
  t: np.ndarray
  s: np.ndarray
  slot: np.ndarray

  def cut(self, length: int) -> list['Steps']:
    """Runs of `length` steps each, which must divide N."""
    parts = [np.split(array, len(array) // length) for array in self]
    return [Steps(*arrays) for arrays in zip(*parts, strict=True)]


def steps_along(times: np.ndarray, num_frames: int = 0) -> Steps:
  """times (N+1,), noise first -> N steps. Raises: ValueError for more frames than states."""
  number = np.arange(len(times) - 1, dtype=np.uint32)
  return Steps(number, times[:-1], times[1:], frame_slots(len(number), num_frames)[1:])


def start_sampling(
  sampler: Sampler,
  x_T: Array,
  times: np.ndarray,
  *,
  num_frames: int = 0,
  frame_examples: int = 0,
) -> SamplingState:
  """The state of noise x_T (B,H,W,C), which is the first frame; times (N+1,) are all that will be visited."""
  frames = jnp.zeros((num_frames, frame_examples, *x_T.shape[1:]), x_T.dtype)
  if num_frames:
    frames = frames.at[0].set(x_T[:frame_examples])
  return SamplingState(x_T, sampler.init(x_T, times), frames)


def continue_sampling(
  sampler: Sampler, denoise: Denoiser, keys: Array, state: SamplingState, steps: Steps
) -> SamplingState:
  """The state after `steps`; keys (B,), one an example.

  Frames are states of the batch's first examples, in one buffer that the scan updates in place.
  """
  num_frames, frame_examples = state.frames.shape[:2]
  dtype = jnp.promote_types(state.x_t.dtype, jnp.float32)
  steps = steps._replace(t=jnp.asarray(steps.t, dtype), s=jnp.asarray(steps.s, dtype))

  def body(state, step):
    step_keys = fold_in_each(keys, step.number)
    x_s, carry = sampler.step(step_keys, state.x_t, step.t, step.s, denoise, state.carry)
    frames = state.frames
    if num_frames:
      frames = frames.at[step.slot].set(x_s[:frame_examples], mode='drop')
    return SamplingState(x_s, carry, frames), None

  return jax.lax.scan(body, state, jax.tree.map(jnp.asarray, steps))[0]
