"""The one sampling loop: every sampler is a `step` inside this `lax.scan`."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.randomness import fold_in_each
from diffusion_jax.types import Array, Denoiser, Sampler


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
  the batch's first examples. Only those are kept, in one buffer that the scan updates in place.
  """
  num_steps = len(times) - 1
  slots = frame_slots(num_steps, num_frames)
  times = jnp.asarray(times, jnp.promote_types(x_T.dtype, jnp.float32))
  frames = jnp.zeros((num_frames, frame_examples, *x_T.shape[1:]), x_T.dtype)

  def keep(frames, slot, x):
    return frames.at[slot].set(x[:frame_examples], mode='drop') if num_frames else frames

  def body(state, inputs):
    x_t, carry, frames = state
    step, t, s, slot = inputs
    x_s, carry = sampler.step(fold_in_each(keys, step), x_t, t, s, denoise, carry)
    return (x_s, carry, keep(frames, slot, x_s)), None

  state = (x_T, sampler.init(x_T), keep(frames, slots[0], x_T))
  inputs = (jnp.arange(num_steps, dtype=jnp.uint32), times[:-1], times[1:], jnp.asarray(slots[1:]))
  (x_0, _, frames), _ = jax.lax.scan(body, state, inputs)
  return x_0, frames
