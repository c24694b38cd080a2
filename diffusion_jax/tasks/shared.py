"""What every task needs: a compiled step on sharded data, and a pass over the held-out images."""

from collections.abc import Callable

import jax
import numpy as np

from diffusion_jax.data.pipeline import Numbers, evaluation_batches
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.patience import alive
from diffusion_jax.training import resident
from diffusion_jax.types import DataSource, PyTree


def step_input(experiment: Experiment) -> DataSource:
  """What the step is given: examples, or their numbers if the device has the examples."""
  source = experiment.train_data
  return Numbers(source) if experiment.config.data.device_resident else source


def compile_step(
  experiment: Experiment, train_step: Callable, state: PyTree, *frozen: PyTree
) -> Callable:
  """(state, batch) -> (state, metrics) of train_step, compiled ahead of time, its state donated.

  state: abstract, with shardings. frozen: further arguments of train_step, on the devices, which
  would be copied into the program if they were constants.
  """
  devices = experiment.mesh
  shardings = jax.tree.map(lambda x: x.sharding, state)
  size = experiment.config.train.batch_size
  batch = {
    name: jax.ShapeDtypeStruct(
      (size, *item.shape), item.dtype, sharding=mesh.batch_sharding(devices)
    )
    for name, item in step_input(experiment).element.items()
  }
  data = experiment.resident_data

  def step(state, batch, data, *frozen):
    if data:
      batch = resident.gather(data, batch['number'], devices)
    return train_step(state, batch, *frozen)

  jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, mesh.replicated(devices)))
  with alive('compiling the training step'):
    compiled = jitted.lower(state, batch, data, *frozen).compile()
  return lambda state, batch: compiled(state, batch, data, *frozen)


def sum_over_holdout(experiment: Experiment, evaluate: Callable) -> PyTree:
  """The sum of evaluate(batch) over all held-out images, each in one batch once.

  One batch at a time: neither the device's memory nor the hosts' collectives take a queue.
  """
  sharding, size = mesh.batch_sharding(experiment.mesh), experiment.config.train.batch_size
  batches = evaluation_batches(
    experiment.holdout_data, batch_size=size, rows=mesh.local_rows(experiment.mesh, size)
  )
  sums = [jax.device_get(evaluate(mesh.to_devices(batch, sharding))) for batch in batches]
  return jax.tree.map(lambda *parts: np.sum(parts, axis=0), *sums)
