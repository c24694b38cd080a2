"""Reads KL autoencoders as CompVis publishes them: model.ckpt, or the same arrays as .safetensors.

Their decoder counts levels upwards from the image, as ours does.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.pretrained import weights
from diffusion_jax.pretrained.weights import Source
from diffusion_jax.types import PyTree

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}
PARTS = {'norm_in': 'norm1', 'conv_in': 'conv1', 'norm_out': 'norm2', 'conv_out': 'conv2'}


def source_of(path: tuple[str, ...]) -> Source:
  """Maps our path to their names, as ('encoder', 'down_0_1', 'conv_in', 'kernel')."""
  *modules, leaf = path
  leaf = LEAVES[leaf]
  if modules[-1] == 'qkv':
    prefix = f'{modules[0]}.mid.attn_1'
    return Source(tuple(f'{prefix}.{name}.{leaf}' for name in 'qkv'))
  return Source((f'{_module_name(modules)}.{leaf}',))


def _module_name(modules: list[str]) -> str:
  top, *rest = modules
  if not rest or rest[0] in ('conv_in', 'conv_out', 'norm_out'):
    return '.'.join(modules)
  block, *inner = rest
  if block == 'mid':
    kind, part = inner
    if kind == 'attention':
      return f'{top}.mid.attn_1.{ {"norm": "norm", "out": "proj_out"}[part] }'
    return f'{top}.mid.block_{int(kind[-1]) + 1}.{PARTS[part]}'
  direction, level, which = block.split('_')
  if which == 'resample':
    sampled = {'down': 'downsample', 'up': 'upsample'}[direction]
    return f'{top}.{direction}.{level}.{sampled}.conv'
  return f'{top}.{direction}.{level}.block.{which}.{ {**PARTS, "skip": "nin_shortcut"}[inner[0]] }'


def sizes_of(state: Mapping[str, np.ndarray], origin: str) -> dict:
  """Finds the arguments of AutoencoderKL that these arrays were made with.

  Raises: InputError if they do not belong to a KL autoencoder.
  """
  needed = ('encoder.conv_in.weight', 'quant_conv.weight', 'post_quant_conv.weight')
  missing = [name for name in needed if name not in state]
  if missing:
    raise InputError(f'{origin}: no KL autoencoder of CompVis, it lacks {", ".join(missing)}')
  channels, image_channels = state['encoder.conv_in.weight'].shape[:2]
  num_blocks, mult = 0, {}
  for name, array in state.items():
    found = re.fullmatch(r'encoder\.down\.(\d+)\.block\.(\d+)\.conv1\.weight', name)
    if found:
      level, block = map(int, found.groups())
      num_blocks = max(num_blocks, block + 1)
      mult[level] = array.shape[0] // channels
  z_channels, embed_channels = state['post_quant_conv.weight'].shape[:2]
  return {
    'channels': channels,
    'channel_mult': tuple(mult[level] for level in sorted(mult)),
    'num_res_blocks': num_blocks,
    'z_channels': z_channels,
    'embed_channels': embed_channels,
    'image_channels': image_channels,
  }


def autoencoder_params(module: AutoencoderKL) -> PyTree:
  """Returns ShapeDtypeStructs of its parameters."""
  side = 2 * module.factor
  images = jnp.zeros((1, side, side, module.image_channels))
  return weights.abstract_params(module, images, jnp.zeros((1, 2, 2, module.embed_channels)))


def load(path: str | Path, *, allow_pickle: bool = False) -> tuple[AutoencoderKL, PyTree]:
  """Reads model.ckpt (a pickle) or .safetensors -> (module, params), params float32 NumPy.

  Raises: InputError, DamagedError; see weights.read_state and weights.convert.
  """
  origin, state = str(path), weights.read_state(Path(path), allow_pickle=allow_pickle)
  unused = ('loss.', 'model_ema.')  # The training's networks and averages.
  state = {name: array for name, array in state.items() if not name.startswith(unused)}
  try:
    module = AutoencoderKL(**sizes_of(state, origin))
  except ValueError as error:
    raise InputError(f'{origin}: {error}') from error
  return module, weights.convert(autoencoder_params(module), state, source_of, origin=origin)
