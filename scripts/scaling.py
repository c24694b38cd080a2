"""Bytes that a training step moves between devices under each sharding preset, and the batch it scales from.

    PYTHONPATH=. python scripts/scaling.py > docs/scaling.md

Takes the shardings that training takes (diffusion_jax/runtime/presets.py), of abstract states: it needs no
devices and no data. Counts what a device receives in collectives that use a ring or anything as good.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from configs import ddpm, dit_xl
from diffusion_jax.experiment.checks import create
from diffusion_jax.models.unet_blocks import AttentionBlock, ResidualBlock
from diffusion_jax.reporting.tables import quantity
from diffusion_jax.runtime import cost, presets
from diffusion_jax.runtime.mesh import path_name

FLOAT32, BFLOAT16 = 4, 2  # Bytes of parameters and gradients, and of activations.
# FLOP/s in bfloat16 and bytes/s that a device receives, as published: TPUs by cloud.google.com/tpu/docs, all
# links of a chip; H200 by NVIDIA's data sheet, half of NVLink's 900 GB/s; its FLOP/s as measured by others.
DEVICES = {'v5e': (197e12, 200e9), 'v5p': (459e12, 600e9), 'H200': (790e12, 450e9)}
SIZES = {'v5e': (8, 256), 'v5p': (8, 256), 'H200': (8,)}


class Traffic(NamedTuple):
  """Bytes that a device receives in a step: whatever the batch, and for each image of its own."""

  fixed: float
  per_image: float


def of_parameter(size: int, spec: PartitionSpec, axes: Mapping[str, int]) -> float:
  """Bytes for one parameter of `size` values: gathered forward and backward, its gradient summed."""
  names = [name for axis in spec if axis for name in ([axis] if isinstance(axis, str) else axis)]
  data, fsdp, tensor = axes['data'], axes['fsdp'], axes['tensor']
  alone = 'tensor' in spec  # Cut by heads or hidden channels, and used so.
  used = FLOAT32 * size / (tensor if alone else 1)
  group = math.prod(axes[name] for name in names if not (alone and name == 'tensor'))
  gathered = 2 * used * (group - 1) / group
  if 'fsdp' not in names:
    batch = data * fsdp
    return gathered + 2 * used * (batch - 1) / batch
  return gathered + used * (fsdp - 1) / fsdp + 2 * used / group * (data - 1) / data


def summed_values(module, *inputs) -> int:
  """Values of an image that blocks cut over `tensor` sum in a step, forward and backward."""
  found: dict[tuple, int] = {}

  def note(call, args, options, context):
    result, block = call(*args, **options), context.module
    if context.method_name == '__call__':
      if isinstance(block, ResidualBlock):
        found[block.path] = args[0][0].size + result[0].size
      if isinstance(block, AttentionBlock):
        found[block.path] = 2 * result[0].size
    return result

  with nn.intercept_methods(note):
    jax.eval_shape(module.init, jax.random.key(0), *inputs)
  if not found:  # A transformer: four sums of all tokens a block.
    tokens = (inputs[0].shape[1] // module.patch_size) * (inputs[0].shape[2] // module.patch_size)
    return 4 * module.depth * tokens * module.hidden_size
  return sum(found.values())


class Model(NamedTuple):
  """Parameters by path, training FLOP an image, and values summed an image under `tensor`."""

  parameters: dict[str, tuple[int, ...]]
  flops: int
  summed: int


def model_of(config) -> Model:
  """Measures a config of diffusion_jax, abstractly."""
  config.model[config.model.name].remat = 'none'
  experiment = create(config.to_dict())
  objective = experiment.make_objective(jnp.bfloat16)
  parts = jax.eval_shape(objective.init)
  leaves = jax.tree_util.tree_leaves_with_path({'params': parts})
  inputs = objective.forward_inputs(1)
  module = experiment.context(jnp.bfloat16).make_model()
  return Model(
    {path_name(path): leaf.shape for path, leaf in leaves},
    3 * cost.flops(objective.forward, parts, *inputs),
    summed_values(module, *inputs),
  )


def traffic(model: Model, preset: str, axes: Mapping[str, int]) -> Traffic:
  """What a device receives under a preset."""
  fixed = sum(
    of_parameter(math.prod(shape), presets.spec_of(preset, path, shape, axes), axes)
    for path, shape in model.parameters.items()
  )
  tensor = axes['tensor'] if preset == 'fsdp_tensor' else 1
  return Traffic(fixed, 2 * BFLOAT16 * model.summed * (tensor - 1) / tensor)


def least_batch(
  model: Model, moved: Traffic, axes: Mapping[str, int], flops: float, received: float
) -> float:
  """The batch, over all devices, whose computation takes as long as its communication; inf: none.

  With b images a group of `tensor` devices: fixed + per_image b bytes against flops b / tensor.
  """
  gain = model.flops / axes['tensor'] / flops - moved.per_image / received
  groups = axes['data'] * axes['fsdp']
  return groups * moved.fixed / received / gain if gain > 0 else math.inf


def rows(model: Model) -> list[list[str]]:
  """The table of a model."""
  found = []
  for devices in (8, 256):
    plans = [(preset, presets.sizes(preset, (0, 0, 0))) for preset in presets.SIZES]
    if devices > 8:
      plans.append(('fsdp', (-1, 8, 1)))
    for preset, sizes in plans:
      rest = devices // abs(math.prod(sizes))
      axes = dict(zip(('data', 'fsdp', 'tensor'), (rest if s == -1 else s for s in sizes)))
      moved = traffic(model, preset, axes)
      batches = []
      for name, (flops, received) in DEVICES.items():
        least = least_batch(model, moved, axes, flops, received)
        known = devices in SIZES[name]
        batches.append(('none' if math.isinf(least) else f'{math.ceil(least):,}') if known else '')
      shape = 'x'.join(str(size) for size in axes.values())
      image = quantity(moved.per_image, 'B') if moved.per_image else '0'
      found.append([str(devices), preset, shape, quantity(moved.fixed, 'B'), image, *batches])
  return found


def page() -> str:
  """The whole page."""
  models = {'DiT-XL/2 (configs/dit_xl.py)': dit_xl, 'Pixel UNet (configs/ddpm.py)': ddpm}
  text = [INTRODUCTION]
  for title, config in models.items():
    model = model_of(config.get_config())
    size = sum(math.prod(shape) for shape in model.parameters.values())
    head = ['devices', 'preset', 'data x fsdp x tensor', 'bytes a step', 'and for an image']
    head += [f'batch, {name}' for name in DEVICES]
    table = [head, ['---'] * len(head), *rows(model)]
    text.append(f'\n## {title}\n')
    text.append(f'{size:,} parameters, {quantity(model.flops, "FLOP")} an image to train.\n')
    text += [f'| {" | ".join(row)} |' for row in table]
  return '\n'.join(text) + '\n'


INTRODUCTION = """# Scaling

What a step moves between devices under each preset of `config.mesh`, and from which batch on a step takes
longer to compute than to move: below it, more devices do not help. `PYTHONPATH=. python scripts/scaling.py`
prints this page from the shardings that training uses; nothing here is measured.

- **bytes a step**: what a device receives. Parameters and gradients move in float32. Kernels that are cut are
  gathered twice, gradients summed once; what an axis does not divide is summed whole.
- **and for an image**: activations in bfloat16 that blocks cut over `tensor` sum, for each image of the group.
- **batch**: over all devices, if both run at their published peak and overlap fully: v5e 197 TFLOP/s and
  200 GB/s, v5p 459 and 600, H200 790 and 450 (NVLink, eight of them). A program at 40% of the peak scales from
  40% of that batch on; a network that reaches half of its peak needs twice the batch. Nothing is computed
  twice (`remat` none)."""

if __name__ == '__main__':
  print(page(), end='')
