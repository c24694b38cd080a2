"""What a denoiser remembers: one entry a step, whatever the sampler's calls of the denoiser."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.memory import Remembering
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.types import Prediction
from tests.diffusion.test_schedules import build
from tests.support.samplers import run_sampler


class TwoCalls(DDIM):
  """Calls the denoiser a second time, but in the last step, as Heun's method does."""

  def evaluations(self, num_steps):
    return 2 * num_steps - 1

  def step(self, keys, x_t, t, s, denoise, carry):
    x_s, carry = super().step(keys, x_t, t, s, denoise, carry)
    return jax.lax.cond(s > 0, lambda x: denoise(x, s).x0, lambda x: x, x_s), carry


def test_a_step_remembers_its_first_call_and_all_its_calls_see_the_step_before():
  sampler, seen = Remembering(TwoCalls(build('cosine')), lambda x: jnp.zeros_like(x[..., :1])), []

  def denoise(x_t, t, memory):
    assert memory.shape == (2, 3, 3, 1)
    jax.debug.callback(lambda t, m: seen.append((float(t), float(m))), t, memory[0, 0, 0, 0])
    return Prediction(x_t, x_t), memory * 10 + t

  times, x_T = np.asarray([1.0, 0.5, 0.25, 0.0]), jnp.ones((2, 3, 3, 4))
  run_sampler(sampler, denoise, x_T, jax.random.split(jax.random.key(0), 2), times)
  jax.effects_barrier()
  expected = [(1, 0), (0.5, 0), (0.5, 1), (0.25, 1), (0.25, 10.5)]
  assert sorted(seen) == sorted(expected) and len(seen) == sampler.evaluations(3)
