"""Gradients of a batch as the mean over smaller ones, which need the memory of one of them."""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.training.objective import Batch, Draws, Metrics, Objective, Parts
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, PyTree


def accumulated(
  objective: Objective,
  accumulate: int,
  state: TrainState,
  frozen: PyTree,
  batch: Batch,
  draws: Draws,
  phase: str,
) -> tuple[Parts, Metrics]:
  """Returns what objective.gradients does, by `accumulate` passes; the number must divide the batch.

  Pass i takes every accumulate-th example, from the i-th on, so no device needs those of another. Each keeps
  its own randomness, so that means of losses have the same gradients. Unrolled on CPU, where gradients of
  convolutions are slow inside a loop.
  """
  if accumulate == 1:
    return objective.gradients(state, frozen, batch, draws, phase)

  def at(i: Array | int, x: Array) -> Array:
    return x.reshape(-1, accumulate, *x.shape[1:])[:, i]

  def one(i: Array | int) -> Any:
    keys, rows = at(i, draws.keys), at(i, draws.dropout.rows)
    own = Draws(keys, draws.dropout._replace(rows=rows))
    part = {name: at(i, x) for name, x in batch.items()}
    return objective.gradients(state, frozen, part, own, phase)

  def add(total: PyTree, i: Array | int) -> PyTree:
    return jax.tree.map(jnp.add, total, one(i))

  total = one(0)
  if jax.default_backend() == 'cpu':
    for i in range(1, accumulate):
      total = add(total, i)
  else:
    total, _ = jax.lax.scan(lambda sums, i: (add(sums, i), None), total, jnp.arange(1, accumulate))
  return jax.tree.map(lambda x: x / accumulate, total)
