"""Run by test_devices.py in a process of its own, with as many CPU devices as it asks for.

    python -m tests.support.device_run FOLDER NUM_DEVICES RULES

Writes FOLDER/devices-NUM-RULES.npz: two SGD steps and samples; and restores FOLDER/checkpoints or, with
one device, writes it.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices, create
from diffusion_jax.models.latents import in_batches
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.checkpoint import Checkpoints
from tests.conftest import tiny_mapping

RULES = {
  'replicated': {},
  'sharded': {
    'mesh.fsdp': 2,
    'mesh.tensor': 2,
    'mesh.rules': (
      ('blocks/qkv/kernel', ('', 'fsdp', '', 'tensor')),
      ('blocks/mlp_in/kernel', ('', 'fsdp', 'tensor')),
      ('blocks/(attention_out|mlp_out)/kernel', ('', 'tensor', 'fsdp')),
    ),
  },
}


def main(folder: Path, num_devices: int, rules: str) -> None:
  assert jax.device_count() == num_devices
  changes = {'sample.cfg_scale': 2.0, 'sampler.name': 'ddpm', **RULES[rules]}
  experiment = create(tiny_mapping(folder, **changes))
  # Adam flips the sign of near-zero gradients; SGD shows the gradients themselves.
  experiment.__dict__['objective'] = dataclasses.replace(
    experiment.objective, optimizers={'model': optax.sgd(0.1)}
  )
  check_devices(experiment)
  preparation.ensure(experiment, folder)
  step = experiment.compile_steps(0)
  shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
  state = jax.jit(experiment.init_state, out_shardings=shardings)()
  for number in range(2):
    batch = experiment.train_data.read(np.arange(16) + 16 * number)
    batch = mesh.to_devices(batch, mesh.batch_sharding(experiment.mesh))
    state, metrics = step(number + 1, state, batch)

  checkpoints = Checkpoints(folder / 'checkpoints')
  if num_devices == 1:
    checkpoints.save(2, state, {})
    checkpoints.wait()
  restored = checkpoints.restore(experiment.abstract_state).state
  checkpoints.close()

  keys = iter(jax.random.split(jax.random.key(3), 1000))
  shaken = jax.tree.map(  # Away from the zeros of the initialisation.
    lambda p: p + 0.03 * jax.random.normal(next(keys), p.shape), restored.params
  )
  generator, index = experiment.generator(), np.arange(16, dtype=np.uint32)
  inputs = mesh.to_devices(
    (index, experiment.sample_labels(index)), mesh.batch_sharding(experiment.mesh)
  )
  samples, _ = jax.jit(lambda params, *a: generator(experiment.objective.network(params), *a))(
    shaken, *inputs
  )
  # Latents are decoded a few of every device's rows at a time.
  rows = jax.random.normal(jax.random.key(4), (48, 2, 3))
  placed = mesh.to_devices(np.asarray(rows), mesh.batch_sharding(experiment.mesh))
  shards = mesh.batch_shards(experiment.mesh)
  decode = jax.jit(lambda x: in_batches(lambda z: 2 * z + 1, x, batch_size=4, shards=shards))
  np.testing.assert_allclose(decode(placed), 2 * rows + 1, atol=1e-6)
  assert decode(placed).sharding.is_equivalent_to(placed.sharding, 3)
  collectives = ('all-gather', 'all-to-all', 'collective-permute', 'all-reduce')
  assert not [name for name in collectives if name in decode.lower(placed).compile().as_text()]
  kernel = state.params['model']['blocks']['qkv']['kernel']
  arrays = {mesh.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
  np.savez(
    folder / f'devices-{num_devices}-{rules}.npz',
    loss=metrics['loss'],
    samples=samples,
    shards=len({str(s.index) for s in kernel.addressable_shards}),
    **{f'state:{name}': value for name, value in arrays.items()},
    **{
      f'restored:{mesh.path_name(path)}': leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    },
  )


if __name__ == '__main__':
  main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
