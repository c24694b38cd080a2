"""AdamW with warm-up, cosine or constant learning rate, and clipping by the global norm."""

import jax
import optax

from diffusion_jax.types import PyTree


def learning_rate_schedule(
  learning_rate: float, warmup_steps: int, total_steps: int, decay: str
) -> optax.Schedule:
  """Linear, (n + 1) / warmup_steps of it at step n, then constant or a cosine to 0 at total_steps."""
  if decay == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, max(total_steps - warmup_steps, 1))
  else:
    after = optax.constant_schedule(learning_rate)
  if not warmup_steps:
    return after
  return optax.join_schedules(
    [lambda step: learning_rate * (step + 1) / warmup_steps, after], [warmup_steps]
  )


def is_decayed(params: PyTree) -> PyTree:
  """True for kernels and tables: weight decay leaves biases and norms alone."""

  def matrix(path, leaf):
    del leaf
    return path[-1].key in ('kernel', 'embedding')

  return jax.tree_util.tree_map_with_path(matrix, params)


def make_optimizer(
  *,
  learning_rate: float,
  warmup_steps: int,
  decay: str,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
  total_steps: int,
  first_step: int = 0,
) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); clip_norm 0 does not clip.

  first_step: of the run at which this optimizer takes its first; the learning rate is that of the run.
  """
  rate = learning_rate_schedule(learning_rate, warmup_steps, total_steps, decay)
  adamw = optax.adamw(
    lambda count: rate(count + first_step),
    b1=b1,
    b2=b2,
    eps=eps,
    weight_decay=weight_decay,
    mask=is_decayed,
  )
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(clip, adamw)  # The same state either way, so that a run can resume with both.
