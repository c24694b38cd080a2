"""UNet2DModel of the diffusers library, the form in which the DDPM and ADM UNets are published there.

Its blocks are ours under other names, with two differences: up_blocks are counted from the middle,
and DDPM's time sinusoids are [sin, cos] where ours are [cos, sin], which a permutation of the rows of
the first time layer makes up for.
"""

import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.models.unet import UNet
from diffusion_jax.pretrained import weights
from diffusion_jax.pretrained.weights import Source
from diffusion_jax.types import PyTree

LEAVES = {'kernel': 'weight', 'scale': 'weight', 'embedding': 'weight', 'bias': 'bias'}
TOP = {
  'conv_in': 'conv_in',
  'norm_out': 'conv_norm_out',
  'conv_out': 'conv_out',
  'time_in': 'time_embedding.linear_1',
  'time_out': 'time_embedding.linear_2',
  'label': 'class_embedding',
}
PARTS = {
  'norm_in': 'norm1',
  'conv_in': 'conv1',
  'modulation': 'time_emb_proj',
  'norm_out': 'norm2',
  'conv_out': 'conv2',
  'skip': 'conv_shortcut',
  'norm': 'group_norm',
  'out': 'to_out.0',
}
# Attention layers of files written before 2023, as google/ddpm-cifar10-32.
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def convert(state: Mapping[str, np.ndarray], module: UNet, *, sines_first: bool = True) -> PyTree:
  """Parameters of `module` from a UNet2DModel's state, float32 NumPy.

  sines_first: its flip_sin_to_cos is False, as in DDPM; ADM's is True and calls for False here.
  Raises: ValueError that names every missing, unexpected and misshapen array.
  """
  state = {_new_name(name): np.asarray(array, np.float32) for name, array in state.items()}
  last = len(module.channel_mult) - 1

  def source_of(path: tuple[str, ...]) -> Source:
    *modules, leaf = path
    if modules[-1] == 'qkv':
      prefix = _block_name(modules[0], last)
      return Source(tuple(f'{prefix}.to_{name}.{LEAVES[leaf]}' for name in 'qkv'))
    return Source((f'{_module_name(modules, last)}.{LEAVES[leaf]}',))

  def transform(path: tuple[str, ...], array: np.ndarray, ndim: int) -> np.ndarray:
    array = weights.to_flax(path, array, ndim)
    if sines_first and path[-2:] == ('time_in', 'kernel'):
      array = np.roll(array, len(array) // 2, axis=0)
    return array

  try:
    return weights.convert(
      _abstract_params(module, state),
      state,
      source_of,
      origin='UNet2DModel',
      transform=transform,
    )
  except InputError as error:
    raise ValueError(str(error)) from error


def _abstract_params(module: UNet, state: Mapping[str, np.ndarray]) -> PyTree:
  """ShapeDtypeStructs, for images of the size at which attention is at the levels that `state` says.

  Raises: ValueError if there is no such size.
  """
  found = (re.match(r'down_blocks\.(\d+)\.attentions\.', name) for name in state)
  first = min((int(level[1]) for level in found if level), default=0)
  halvings = len(module.channel_mult) - 1
  side = max(module.attention_resolutions, default=2 ** max(halvings - first, 0)) << first
  channels = state['conv_in.weight'].shape[1] if 'conv_in.weight' in state else 1
  images = jnp.zeros((1, side, side, channels))
  return weights.abstract_params(module, images, jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)})


def _module_name(modules: list[str], last: int) -> str:
  """('up_1_0_residual', 'conv_in') -> 'up_blocks.0.resnets.0.conv1', where `last` is 1."""
  block, *inner = modules
  if block == 'condition':
    return TOP[inner[0]]
  if not inner and not block.endswith('_resample'):
    return TOP[block]
  return '.'.join([_block_name(block, last), PARTS[inner[0]] if inner else 'conv'])


def _block_name(block: str, last: int) -> str:
  if block.startswith('mid'):
    return 'mid_block.attentions.0' if 'attention' in block else f'mid_block.resnets.{block[4]}'
  direction, level, *rest = block.split('_')
  number = int(level) if direction == 'down' else last - int(level)
  prefix = f'{direction}_blocks.{number}'
  if rest == ['resample']:
    return f'{prefix}.{direction}samplers.0'
  index, kind = rest
  return f'{prefix}.{ {"residual": "resnets", "attention": "attentions"}[kind] }.{index}'


def _new_name(name: str) -> str:
  for old, new in OLD_NAMES.items():
    name = re.sub(rf'(attentions\.\d+)\.{old}\.', rf'\1.{new}.', name)
  return name
