"""Reads directories of the diffusers library: AutoencoderKL and DiTTransformer2DModel.

config.json beside diffusion_pytorch_model.safetensors (or .bin). A directory of a whole pipeline is
answered with the name of the part to give.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.linen import Module

from diffusion_jax.errors import InputError
from diffusion_jax.models import dit
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.pretrained import weights
from diffusion_jax.pretrained.compvis import LEAVES, PARTS, autoencoder_params
from diffusion_jax.pretrained.weights import Source
from diffusion_jax.types import PyTree

FILES = ('diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.bin')
# The fields of config.json that a DiT needs.
DIT_FIELDS = (
  *('num_attention_heads', 'attention_head_dim', 'num_layers', 'num_embeds_ada_norm'),
  *('patch_size', 'in_channels', 'sample_size'),
)
EMBEDDER = 'transformer_blocks.0.norm1.emb'
NAMES = {
  ('patch_in',): ('pos_embed.proj',),
  ('condition', 'time_in'): (f'{EMBEDDER}.timestep_embedder.linear_1',),
  ('condition', 'time_out'): (f'{EMBEDDER}.timestep_embedder.linear_2',),
  ('condition', 'label'): (f'{EMBEDDER}.class_embedder.embedding_table',),
  ('blocks', 'adaln', 'modulation'): ('norm1.linear',),
  ('blocks', 'qkv'): ('attn1.to_q', 'attn1.to_k', 'attn1.to_v'),
  ('blocks', 'attention_out'): ('attn1.to_out.0',),
  ('blocks', 'mlp_in'): ('ff.net.0.proj',),
  ('blocks', 'mlp_out'): ('ff.net.2',),
  ('final_adaln', 'modulation'): ('proj_out_1',),
  ('patch_out',): ('proj_out_2',),
}
# Attention layers of files written before 2023.
OLD_NAMES = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'proj_attn': 'to_out.0'}


def load(path: str | Path, *, allow_pickle: bool = False) -> tuple[Module, PyTree]:
  """Reads a directory -> (module, params), params float32 NumPy.

  Raises: InputError for another kind of model or arrays that do not fit; DamagedError.
  """
  folder = Path(path)
  if (folder / 'model_index.json').is_file() and not (folder / 'config.json').is_file():
    raise InputError(f'{folder}: a whole pipeline; give its part: {folder}/vae or /transformer')
  config = weights.read_json(folder / 'config.json')
  kinds = {'AutoencoderKL': autoencoder, 'DiTTransformer2DModel': transformer}
  kind = config.get('_class_name')
  if kind == 'Transformer2DModel':  # The name of DiTs before diffusers 0.29.
    kind = 'DiTTransformer2DModel'
  if kind not in kinds:
    what = f'a {kind}' if kind else 'no diffusers model (its config.json has no _class_name)'
    raise InputError(f'{folder}: {what}; allowed {", ".join(kinds)}')
  file = next((folder / name for name in FILES if (folder / name).is_file()), None)
  if file is None:
    raise InputError(f'{folder}: neither {FILES[0]} nor {FILES[1]} in it')
  state = weights.read_state(file, allow_pickle=allow_pickle)
  return kinds[kind](config, state, str(file))


def autoencoder(config: Mapping, state: Mapping[str, np.ndarray], origin: str):
  """Builds an AutoencoderKL. Raises: InputError for options that the published ones do not use."""
  channels = config['block_out_channels']
  module = AutoencoderKL(
    channels=channels[0],
    channel_mult=tuple(c // channels[0] for c in channels),
    num_res_blocks=config['layers_per_block'],
    z_channels=config['latent_channels'],
    embed_channels=config['latent_channels'],
    image_channels=config['in_channels'],
  )
  state = {_new_name(name): array for name, array in state.items()}
  source_of = _autoencoder_source_of(len(channels))
  return module, weights.convert(autoencoder_params(module), state, source_of, origin=origin)


def _new_name(name: str) -> str:
  for old, new in OLD_NAMES.items():
    name = re.sub(rf'(attentions\.0)\.{old}\.', rf'\1.{new}.', name)
  return name


def _autoencoder_source_of(levels: int):
  """Maps our path to their names; their decoder counts levels from the latent."""

  def source_of(path: tuple[str, ...]) -> Source:
    *modules, leaf = path
    leaf = LEAVES[leaf]
    if modules[-1] == 'qkv':
      prefix = f'{modules[0]}.mid_block.attentions.0'
      return Source(tuple(f'{prefix}.{name}.{leaf}' for name in ('to_q', 'to_k', 'to_v')))
    return Source((f'{module_name(modules)}.{leaf}',))

  def module_name(modules: list[str]) -> str:
    top, *rest = modules
    if not rest or rest[0] in ('conv_in', 'conv_out'):
      return '.'.join(modules)
    if rest[0] == 'norm_out':
      return f'{top}.conv_norm_out'
    block, *inner = rest
    if block == 'mid':
      kind, part = inner
      if kind == 'attention':
        part = {'norm': 'group_norm', 'out': 'to_out.0'}[part]
        return f'{top}.mid_block.attentions.0.{part}'
      return f'{top}.mid_block.resnets.{kind[-1]}.{PARTS[part]}'
    direction, level, which = block.split('_')
    level = int(level) if direction == 'down' else levels - 1 - int(level)
    if which == 'resample':
      return f'{top}.{direction}_blocks.{level}.{direction}samplers.0.conv'
    part = {**PARTS, 'skip': 'conv_shortcut'}[inner[0]]
    return f'{top}.{direction}_blocks.{level}.resnets.{which}.{part}'

  return source_of


def transformer(config: Mapping, state: Mapping[str, np.ndarray], origin: str):
  """Builds a DiT. Its blocks repeat the time and label embedders; ours has them once.

  Raises: InputError that names what config.json lacks, or what does not fit.
  """
  missing = [name for name in DIT_FIELDS if name not in config]
  if missing:
    raise InputError(f'{Path(origin).parent}/config.json: it lacks {", ".join(missing)}')
  try:
    module = dit.DiT(**dit_sizes_of(config))
  except ValueError as error:
    raise InputError(f'{origin}: {error}') from error
  state = _one_embedder(state, module.depth, origin)
  state = {name: array for name, array in state.items() if name != 'pos_embed.pos_embed'}
  size = config['sample_size'], config['in_channels']
  return module, converted_dit(module, size, state, NAMES, 'transformer_blocks.{}.', origin)


def dit_sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments of DiT for a config.json."""
  heads = config['num_attention_heads']
  return {
    'patch_size': config['patch_size'],
    'hidden_size': heads * config['attention_head_dim'],
    'depth': config['num_layers'],
    'num_heads': heads,
    'mlp_ratio': 4.0,
    'frequency_shift': 1,  # Theirs; the published DiT has 0.
    'out_channels': config.get('out_channels') or config['in_channels'],
    'num_classes': config['num_embeds_ada_norm'],
  }


def _one_embedder(state: Mapping[str, np.ndarray], depth: int, origin: str) -> dict:
  """Keeps the first block's embedders for all. Raises: InputError if a block has others."""
  kept = dict(state)
  for name in [name for name in state if '.norm1.emb.' in name]:
    block = int(name.split('.')[1])
    first = name.replace(f'transformer_blocks.{block}.', 'transformer_blocks.0.', 1)
    if block and first in state:
      if not np.array_equal(state[name], state[first]):
        raise InputError(f'{origin}: {name} differs from {first}: no published DiT has that')
      del kept[name]
  return kept


def converted_dit(
  module: dit.DiT,
  size: tuple[int, int],
  state: Mapping[str, np.ndarray],
  names: Mapping[tuple[str, ...], tuple[str, ...]],
  block: str,
  origin: str,
) -> PyTree:
  """Converts `state` to parameters of `module`.

  size: height and channels of x_t. names: our module path -> their modules' names, those of scanned
  blocks below `block`. Raises: as weights.convert.
  """

  def source_of(path: tuple[str, ...]) -> Source:
    *modules, leaf = path
    leaf = {**LEAVES, 'embedding': 'weight'}[leaf]
    stacked = modules[0] == 'blocks'
    prefix = block if stacked else ''
    theirs = tuple(f'{prefix}{name}.{leaf}' for name in names[tuple(modules)])
    return Source(theirs, module.depth if stacked else 0)

  def transform(path: tuple[str, ...], array: np.ndarray, ndim: int) -> np.ndarray:
    if path == (
      'patch_in',
      'kernel',
    ):  # Their convolution (d, C, p, p) is our map of (p, p, C) to d.
      return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return weights.to_flax(path, array, ndim)

  side, channels = size
  images, label = jnp.zeros((1, side, side, channels)), jnp.zeros(1, jnp.int32)
  abstract = weights.abstract_params(module, images, jnp.zeros(1), {'label': label})
  return weights.convert(abstract, state, source_of, origin=origin, transform=transform)
