"""Run by test_sharding.py in a process of its own, with as many CPU devices as it asks for.

    python -m tests.support.sharding_run FOLDER MESH...

MESH is data x fsdp x tensor, as 2x2x2. Writes FOLDER/MESH.json for each: per system the losses of ten SGD
steps, the bytes of the state on a device and of the whole state, and the collectives of the compiled step as
[operation, bytes on a device, shape, name of the JAX operation].
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices, create
from diffusion_jax.experiment.facts import local_bytes
from diffusion_jax.runtime import cost, mesh
from diffusion_jax.training.compilation import compile_step
from diffusion_jax.training.step import make_train_step
from tests.conftest import tiny_mapping

SYSTEMS = {
  'dit': {'model.dit.hidden_size': 64, 'model.dit.num_heads': 4},
  'unet': {'model.name': 'unet', 'model.unet.dropout': 0.1},
  'autoencoder': {
    'objective.name': 'autoencoder',
    'objective.autoencoder.perceptual_weight': 0.0,
    'objective.autoencoder.discriminator_start': 4,
    'objective.autoencoder.discriminator_channels': 8,
    'objective.autoencoder.discriminator_layers': 1,
    'vae.channels': 32,
    'vae.channel_mult': (1, 2),
    'vae.num_res_blocks': 1,
    'model.name': 'dit',
    'checkpoint.best_metric': 'holdout_psnr',
  },
}
PRESETS = {'1x1x1': 'replicated', '8x1x1': 'replicated', '2x2x2': 'fsdp_tensor'}
COLLECTIVE = re.compile(
  r'= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\('
)
ARRAY = re.compile(r'(pred|[a-z]+(\d+))\[([\d,]*)\]')


def collectives(text):
  """Lists those of a compiled program; an operation of several arrays is listed once an array."""
  found = []
  for line in text.splitlines():
    match = COLLECTIVE.search(line)
    if match:
      name = re.search(r'op_name="([^"]*)"', line)
      for _, bits, shape in ARRAY.findall(match[1]):
        sizes = [int(size) for size in shape.split(',') if size]
        size = int(bits or 8) // 8 * int(np.prod(sizes, initial=1))
        found.append([match[2], size, sizes, name[1] if name else ''])
  return found


def run(folder, name, sizes):
  axes = dict(zip(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), map(int, sizes.split('x'))))
  changes = {**SYSTEMS[name], **axes, 'mesh.preset': PRESETS.get(sizes, 'fsdp')}
  experiment = create(tiny_mapping(folder, **changes, **{'train.num_steps': 10}))
  objective = experiment.objective
  sgd = {part: optax.sgd(1e-3 if name == 'autoencoder' else 0.1) for part in objective.optimizers}
  experiment.__dict__['objective'] = dataclasses.replace(objective, optimizers=sgd)
  check_devices(experiment)
  preparation.ensure(experiment, folder)
  cut, state = mesh.batch_sharding(experiment.mesh), experiment.abstract_state
  batches = [experiment.train_data.read(np.arange(16) + 16 * i) for i in range(10)]
  abstract = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=cut) for k, x in batches[0].items()
  }
  last = make_train_step(experiment.objective, 0, experiment.objective.phase(10))
  shardings = jax.tree.map(lambda x: x.sharding, state)
  options = {'donate_argnums': 0, 'out_shardings': (shardings, mesh.replicated(experiment.mesh))}
  compiled = jax.jit(lambda s, b: last(s, b, {}), **options).lower(state, abstract).compile()
  first = compile_step(
    make_train_step(experiment.objective, 0, experiment.objective.phase(1)), state, abstract, {}, {}
  )
  params, losses = jax.jit(experiment.init_state, out_shardings=shardings)(), []
  for number, batch in enumerate(batches, 1):
    same = experiment.objective.phase(number) == experiment.objective.phase(10)
    params, metrics = (compiled if same else first)(params, mesh.to_devices(batch, cut))
    losses.append({k: float(v) for k, v in metrics.items()})
  return {
    'losses': losses,
    'bytes': local_bytes(state),
    'all_bytes': cost.num_bytes(state),
    'collectives': collectives(compiled.as_text()),
  }


if __name__ == '__main__':
  for sizes in sys.argv[2:]:
    folder = Path(sys.argv[1])
    results = {name: run(folder, name, sizes) for name in SYSTEMS}
    (folder / f'{sizes}.json').write_text(json.dumps(results))
