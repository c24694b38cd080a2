"""The compiled steps of a training, and a pass over held-out examples."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from diffusion_jax.runtime import mesh, xla_options
from diffusion_jax.runtime.patience import alive
from diffusion_jax.training import dispatch, resident
from diffusion_jax.training.objective import Objective
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import TrainStep, make_train_step
from diffusion_jax.types import Array, PyTree

Step = Callable[..., tuple[TrainState, dict[str, Array]]]  # (step, state, batch, count=1)


def compile_steps(
  objective: Objective,
  seed: int,
  state: TrainState,
  batch: PyTree,
  frozen: PyTree,
  data: dict[str, Array],
  steps: range,
  several: int = 1,
  **options: Any,
) -> Step:
  """(step, state, batch) -> (state, metrics): one program a phase of `steps`; the state is donated.

  With count=several it takes that many steps, up to `step`, on batches stacked as dispatch.grouped does.
  state, batch: abstract, with shardings. frozen, data (of resident.load): arrays on the devices.
  options: of make_train_step.
  """
  programs = {
    (phase, count): compile_step(
      make_train_step(objective, seed, phase, **options), state, batch, frozen, data, count
    )
    for phase in sorted(set(map(objective.phase, steps)))
    for count in dispatch.counts(steps.start - 1, steps.stop - 1, several)
  }

  def step(step, state, batch, count=1):
    return programs[objective.phase(step), count](state, batch)

  return step


def compile_step(
  train_step: TrainStep,
  state: TrainState,
  batch: PyTree,
  frozen: PyTree,
  data: dict[str, Array],
  count: int = 1,
) -> Callable:
  """(state, batch) -> (state, metrics), compiled ahead of time."""
  with alive('compiling the training step'):
    lowered = lower_step(train_step, state, batch, frozen, data, count)
    compiled = xla_options.compiled(lowered, 'the training step')
  return lambda state, batch: compiled(state, batch, frozen, data)


def lower_step(
  train_step: TrainStep,
  state: TrainState,
  batch: PyTree,
  frozen: PyTree,
  data: dict[str, Array],
  count: int = 1,
) -> jax.stages.Lowered:
  """(state, batch, frozen, data) -> (state, metrics), which donates the state, before it is compiled.

  count: the steps that it takes, on as many batches, stacked; batch is one of them.
  """
  shardings = jax.tree.map(lambda x: x.sharding, state)
  devices = state.step.sharding.mesh
  if count > 1:
    cut = mesh.stacked_sharding(devices)
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=cut), batch
    )

  def step(state, batch, frozen, data):
    if data:
      batch = resident.gather(data, batch['number'], devices)
    return train_step(state, batch, frozen)

  steps = dispatch.repeated(step, count)
  jitted = jax.jit(steps, donate_argnums=0, out_shardings=(shardings, mesh.replicated(devices)))
  return jitted.lower(state, batch, frozen, data)


def sum_over(
  batches: Iterable[PyTree], evaluate: Callable[[PyTree], PyTree], between: Callable[[], None]
) -> PyTree:
  """The sum of evaluate(batch) over batches that are on the devices.

  One batch at a time: neither the device's memory nor the hosts' collectives take a queue. between() is called
  before each.
  """
  sums = []
  for batch in batches:
    between()
    sums.append(jax.device_get(evaluate(batch)))
  return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *sums)
