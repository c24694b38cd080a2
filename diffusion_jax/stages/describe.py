"""--mode=describe: prints parameters, FLOPs, memory, data and steps of a config without training it."""

import json

import jax

from diffusion_jax.experiment.checks import check_data, check_devices
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.facts import (
  PARTS,
  facts,
  local_bytes,
  memory_warnings,
  meta_if_prepared,
)
from diffusion_jax.reporting.tables import quantity, table
from diffusion_jax.run import Run
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.patience import alive


def data_line(f: dict) -> str:
  """Describes the data in one line."""
  if not f['data_fingerprint']:
    return 'not prepared yet (--mode=prepare)'
  return (
    f'{f["train_images"]:,} to train, {f["holdout_images"]:,} held out '
    f'({quantity(f["data_bytes"], "B")}, {f["data_fingerprint"]})'
  )


def latent_row(f: dict) -> dict[str, str]:
  """Describes the latents and the autoencoder of a latent system; empty in pixel space."""
  if f['space'] == 'pixel':
    return {}
  parts = (f['encode_flops_per_image'], f['decode_flops_per_image'])
  return {
    'latents': f'{"x".join(map(str, f["x0_shape"]))} of an autoencoder of '
    f'{f["autoencoder_parameters"]:,} parameters; {quantity(parts[0], "FLOP")} to encode an image, '
    f'{quantity(parts[1], "FLOP")} to decode'
  }


def sharding_table(experiment: Experiment) -> str:
  """Lists every array of the training state: how it is cut, and its bytes on a device."""
  rows, total = [], 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.abstract_state):
    size = local_bytes(leaf)
    total += size
    axes = [[axis] if isinstance(axis, str) else axis or ['-'] for axis in leaf.sharding.spec]
    cut = ', '.join('+'.join(names) for names in axes) if any(leaf.sharding.spec) else 'whole'
    shape = 'x'.join(map(str, leaf.shape)) or '()'
    rows.append([mesh.path_name(path), shape, leaf.dtype.name, cut, f'{size:,}'])
  sizes = ', '.join(f'{name} {size}' for name, size in experiment.mesh.shape.items())
  title = f'mesh: {sizes}; {len(rows)} arrays, {total:,} bytes a device'
  return f'{title}\n\n{table(["array", "shape", "type", "cut over", "bytes a device"], rows)}'


def main(run: Run, *, as_json: bool = False, shardings: bool = False) -> None:
  """Prints the facts, for a person or (as_json) as one JSON object; shardings: of every array instead."""
  experiment = run.experiment
  check_devices(experiment)
  if shardings:
    print(sharding_table(experiment))
    return
  if meta_if_prepared(experiment):
    check_data(experiment)
  with alive('counting operations and memory'):
    f = facts(experiment)
  warnings = memory_warnings(experiment, f)
  if as_json:
    print(json.dumps({**f, 'warnings': warnings}))
    return
  height, width, channels = f['image_shape']
  memory = [f[f'{part}_bytes_per_device'] for part in PARTS]
  classes = f'{f["num_classes"]} classes' if f['num_classes'] else 'unconditional'
  rows = {
    'model': f'{f["model"]}, {f["parameters"]:,} parameters, activations {f["dtype"]}',
    'compute': f'{quantity(f["flops_per_image"], "FLOP")} an image forward, three times that to train',
    'images': f'{height}x{width}x{channels}, {classes}',
    **latent_row(f),
    'data': data_line(f),
    'training': f'{f["steps"]:,} steps of batch {f["batch_size"]:,}'
    + (f' = {f["epochs"]:.1f} epochs' if f['epochs'] else ''),
    'memory': '{} a device: {} state, {} gradients, about {} activations'.format(
      *(quantity(b, 'B') for b in (sum(memory), *memory[:3]))
    )
    + (f', {quantity(memory[3], "B")} data' if memory[3] else ''),
    'devices': f'{f["devices"]} {jax.devices()[0].device_kind}',
  }
  if run.workdir:
    rows['workdir'] = str(run.workdir)
  lines = [*rows.items(), *(('warning', text) for text in warnings)]
  print('\n'.join(f'{name:<9} {text}' for name, text in lines))
