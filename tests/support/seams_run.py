"""Run by objectives/test_seams.py in a process of its own, with as many CPU devices as it asks for.

    python -m tests.support.seams_run FOLDER NUM_DEVICES

Writes FOLDER/seams-NUM.npz: the state after four SGD steps, and how many of its arrays were cut.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from diffusion_jax.experiment.checks import check_devices, create
from diffusion_jax.runtime import mesh
from tests.objectives.test_seams import mapping_of


def main(folder: Path, num_devices: int) -> None:
  rules = {'mesh.fsdp': 4, 'mesh.rules': (('(qkv|mlp_in|mlp_out)/kernel', ('', 'fsdp')),)}
  experiment = create(mapping_of(folder, **(rules if num_devices > 1 else {})))
  # Adam flips the sign of near-zero gradients; SGD shows the gradients themselves.
  experiment.__dict__['objective'] = dataclasses.replace(
    experiment.objective, optimizers={'model': optax.sgd(0.1), 'projector': optax.sgd(0.1)}
  )
  check_devices(experiment)
  step, cut = experiment.compile_steps(0), mesh.batch_sharding(experiment.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
  state = jax.jit(experiment.init_state, out_shardings=shardings)()
  for number in range(4):
    batch = experiment.train_data.read(np.arange(16) + 16 * number)
    state, _ = step(number + 1, state, mesh.to_devices(batch, cut))
  leaves = jax.tree_util.tree_leaves_with_path(state)
  parts = sum(not x.sharding.is_fully_replicated for _, x in leaves)
  np.savez(
    folder / f'seams-{num_devices}.npz',
    cut=parts,
    **{mesh.path_name(path): x for path, x in leaves},
  )


if __name__ == '__main__':
  main(Path(sys.argv[1]), int(sys.argv[2]))
