"""Run by test_hosts.py: one process of several that share the work.

    python -m tests.support.host_run FOLDER NUM_PROCESSES PROCESS PORT MESH

Writes FOLDER/hosts-NUM-MESH.npz (process 0 only): what the step was given in three steps, two SGD steps
with flips, an evaluation pass over 1,003 images in batches of 16, and a preview.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.pipeline import evaluation_batches, train_batches
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import mesh
from diffusion_jax.sampling.previews import Previews
from tests.conftest import tiny_mapping

MESHES = {'data': {}, 'tensor': {'mesh.data': 1, 'mesh.tensor': -1}}


def main(folder: Path, num_processes: int, process: int, port: str, axes: str) -> None:
  if num_processes > 1:
    jax.distributed.initialize(f'127.0.0.1:{port}', num_processes, process)
  assert jax.process_count() == num_processes
  changes = {'data.flip': True, 'train.batch_size': 16, **MESHES[axes]}
  experiment = create(tiny_mapping(folder, **changes))
  experiment.__dict__['objective'] = dataclasses.replace(
    experiment.objective, optimizers={'model': optax.sgd(0.1)}
  )
  devices, sharding = experiment.mesh, mesh.batch_sharding(experiment.mesh)
  rows = mesh.local_rows(devices, 16)
  whole = jax.jit(lambda x: x, out_shardings=mesh.replicated(devices))
  found = {}

  step = experiment.compile_steps(0)
  shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
  state = jax.jit(experiment.init_state, out_shardings=shardings)()
  batches = train_batches(
    experiment.train_data, seed=5, batch_size=16, start_step=92, stop_step=95, rows=rows
  )  # 1,500 images: the second of these batches reaches into the next epoch.
  for number, batch in enumerate(batches):
    assert len(batch['label']) == len(rows)
    batch = mesh.to_devices(batch, sharding)
    found[f'image{number}'], found[f'label{number}'] = whole((batch['image'], batch['label']))
    if number < 2:
      state, metrics = step(number + 1, state, batch)
      found[f'loss{number}'] = metrics['loss']

  train_data = experiment.train_data
  some = Arrays(train_data.values[:1003], 'some', train_data.labels[:1003])

  @jax.jit
  def count(params, batch):
    valid = batch['index'] >= 0
    times = jnp.zeros(1003, jnp.int32).at[batch['index']].add(valid.astype(jnp.int32))
    sums = experiment.objective.holdout(params, {}, None, batch)
    return times, sums['loss'], sums['count']

  counted = [
    jax.device_get(whole(count(state.params, mesh.to_devices(batch, sharding))))
    for batch in evaluation_batches(some, batch_size=16, rows=rows)
  ]
  found['times'], found['evaluation_loss'], found['evaluated'] = map(sum, zip(*counted))
  found['preview'] = Previews(experiment).picture(state.weights())
  if process == 0:
    np.savez(folder / f'hosts-{num_processes}-{axes}.npz', rows=rows, **found)


if __name__ == '__main__':
  main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
