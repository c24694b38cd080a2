"""One training step of any objective: gradients, updates, averages, and no update that is not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.randomness import example_keys, purpose_key
from diffusion_jax.training.accumulation import accumulated
from diffusion_jax.training.objective import Batch, Draws, DropoutDraws, Metrics, Objective
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, PyTree

TrainStep = Callable[[TrainState, Batch, PyTree], tuple[TrainState, Metrics]]


def make_train_step(
  objective: Objective,
  seed: int,
  phase: str = '',
  *,
  accumulate: int = 1,
  skip_grad_norm_above: float = 0.0,
) -> TrainStep:
  """(state, batch, frozen) -> the next state and metrics; `phase` is one of objective.phase's.

  Every draw is a function of (seed, step, position in the batch). A loss, gradient or result that is not
  finite leaves parameters, averages and optimizers as they were; so does the gradient of a part whose norm
  is above skip_grad_norm_above (0: any may be).
  accumulate: passes that a batch is cut into.
  Metrics: () float32 those of the objective and grad_norm, of the model; () int32 skipped.
  """

  def train_step(state, batch, frozen):
    draws = draws_of(seed, state.step, len(batch['label']))
    grads, metrics = accumulated(objective, accumulate, state, frozen, batch, draws, phase)
    new = {'params': dict(state.params), 'opt_states': dict(state.opt_states)}
    for part, gradient in grads.items():
      updates, new['opt_states'][part] = objective.optimizers[part].update(
        gradient, state.opt_states[part], state.params[part]
      )
      new['params'][part] = optax.apply_updates(state.params[part], updates)
    new['averages'] = {
      name: _averaged(state.averages[name], new['params'], decay_at(state.step))
      for name, decay_at in objective.averages.items()
    }
    norms = {part: optax.tree.norm(gradient) for part, gradient in grads.items()}
    finite = [value for name, value in metrics.items() if name.endswith('loss')]
    finite += [*norms.values(), *(optax.tree.norm(new['params'][part]) for part in grads)]
    good = jnp.all(jnp.isfinite(jnp.stack(finite)))
    if skip_grad_norm_above:
      good &= jnp.all(jnp.stack([*norms.values()]) <= skip_grad_norm_above)
    old = {name: getattr(state, name) for name in new}
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    skipped = jnp.where(good, 0, state.skipped + 1)
    state = state.replace(step=state.step + 1, skipped=skipped, **new)
    return state, {**metrics, 'grad_norm': norms.get('model', jnp.nan), 'skipped': skipped}

  return train_step


def draws_of(seed: int, step: Array, batch_size: int) -> Draws:
  """The randomness of a step."""
  key = jax.random.fold_in(purpose_key(seed, 'train'), step)
  rows = jnp.arange(batch_size, dtype=jnp.uint32)
  dropout = DropoutDraws(jax.random.fold_in(purpose_key(seed, 'dropout'), step), rows)
  return Draws(example_keys(key, rows), dropout)


def _averaged(average: PyTree, params: dict[str, PyTree], decay: Array) -> PyTree:
  params = {part: params[part] for part in average}
  return jax.tree.map(lambda e, p: e * decay + p * (1 - decay), average, params)
