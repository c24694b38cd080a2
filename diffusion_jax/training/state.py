"""Everything that training carries from one step to the next."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.models.latents import Scaling
from diffusion_jax.types import Array, PyTree


class Weights(NamedTuple):
  """The part of a state that sampling and measuring need: parameters, and the scaling of latents."""

  parts: dict[str, PyTree]
  scaling: Scaling | None = None

  def only(self, parts: Iterable[str]) -> 'Weights':
    """Keeps these parts alone."""
    return Weights({part: self.parts[part] for part in parts}, self.scaling)


class TrainState(flax.struct.PyTreeNode):
  """step: () int32, updates tried. skipped: () int32, non-finite updates since the last good one.

  params, opt_states: by part, as 'model'. averages: by name, as 'ema', and part.
  scaling: of latents, which the parameters mean nothing without; None in pixel space.
  """

  step: Array
  params: dict[str, PyTree]
  averages: dict[str, dict[str, PyTree]]
  opt_states: dict[str, PyTree]
  skipped: Array
  scaling: Scaling | None = None

  def weights(self, average: str = 'ema') -> Weights:
    """All parameters, averaged where there is an average of them; '' takes them as they are."""
    averaged = self.averages[average] if average else {}
    return Weights({**self.params, **averaged}, self.scaling)


def create_state(
  params: dict[str, PyTree],
  optimizers: Mapping[str, optax.GradientTransformation],
  averages: Iterable[str] = ('ema',),
  averaged: Iterable[str] = ('model',),
  scaling: Scaling | None = None,
) -> TrainState:
  """Step 0: every average starts at the initial parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    averages={
      name: {part: jax.tree.map(jnp.copy, params[part]) for part in averaged} for name in averages
    },
    opt_states={part: optimizer.init(params[part]) for part, optimizer in optimizers.items()},
    skipped=jnp.zeros((), jnp.int32),
    scaling=scaling,
  )


def ema_decay_at(step: Array, decay: float) -> Array:
  """min(decay, (1 + n) / (10 + n)) at update n: short memory first."""
  return jnp.minimum(decay, (1 + step) / (10 + step))
