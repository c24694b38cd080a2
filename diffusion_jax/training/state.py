"""Everything that training carries from one step to the next."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.models.latents import Scaling
from diffusion_jax.types import Array, PyTree


class TrainState(flax.struct.PyTreeNode):
  """step: () int32, updates tried. skipped: () int32, non-finite updates since the last good one.

  scaling: of latents, which the parameters mean nothing without; None in pixel space.
  """

  step: Array
  params: PyTree
  ema_params: PyTree
  opt_state: PyTree
  skipped: Array
  scaling: Scaling | None = None


def create_state(
  params: PyTree, optimizer: optax.GradientTransformation, scaling: Scaling | None = None
) -> TrainState:
  """Step 0: the average starts at the initial parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema_params=jax.tree.map(jnp.copy, params),
    opt_state=optimizer.init(params),
    skipped=jnp.zeros((), jnp.int32),
    scaling=scaling,
  )


def ema_decay_at(step: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)) at update n: short memory first."""
  return jnp.minimum(decay, (1 + step) / (10 + step))
