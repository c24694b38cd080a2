"""Reads DiTs as published by their authors (Peebles & Xie 2023): DiT-XL-2-256x256.pt, or as .safetensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.models import dit
from diffusion_jax.pretrained import weights
from diffusion_jax.pretrained.diffusers import converted_dit
from diffusion_jax.types import PyTree

HEAD_WIDTH = {1152: 72}  # DiT-XL; all others have 64.
NAMES = {
  ('patch_in',): ('x_embedder.proj',),
  ('condition', 'time_in'): ('t_embedder.mlp.0',),
  ('condition', 'time_out'): ('t_embedder.mlp.2',),
  ('condition', 'label'): ('y_embedder.embedding_table',),
  ('blocks', 'adaln', 'modulation'): ('adaLN_modulation.1',),
  ('blocks', 'qkv'): ('attn.qkv',),
  ('blocks', 'attention_out'): ('attn.proj',),
  ('blocks', 'mlp_in'): ('mlp.fc1',),
  ('blocks', 'mlp_out'): ('mlp.fc2',),
  ('final_adaln', 'modulation'): ('final_layer.adaLN_modulation.1',),
  ('patch_out',): ('final_layer.linear',),
}


def load(
  path: str | Path, *, allow_pickle: bool = False, num_heads: int = 0
) -> tuple[dit.DiT, PyTree]:
  """Reads .pt (a pickle) or .safetensors -> (module, params), params float32 NumPy.

  num_heads: 0 is that of the published model of this width; the file does not give it.
  Raises: InputError, DamagedError; see weights.read_state and weights.convert.
  """
  state = weights.read_state(Path(path), allow_pickle=allow_pickle)
  return from_state(state, str(path), num_heads=num_heads)


def from_state(
  state: Mapping[str, np.ndarray], origin: str, *, num_heads: int = 0
) -> tuple[dit.DiT, PyTree]:
  """Raises: InputError that names what does not fit."""
  needed = (
    'x_embedder.proj.weight',
    'y_embedder.embedding_table.weight',
    'final_layer.linear.weight',
  )
  missing = [name for name in needed if name not in state]
  if missing:
    raise InputError(f'{origin}: no DiT as published, it lacks {", ".join(missing)}')
  shapes = {name: array.shape for name, array in state.items()}
  patches = shapes['x_embedder.proj.weight']
  if len(patches) != 4:
    raise InputError(
      f'{origin}: x_embedder.proj.weight is {patches}, a published DiT has (width, channels, patch, '
      'patch)'
    )
  try:
    num_classes = len(state['y_embedder.embedding_table.weight']) - 1
    module = dit.DiT(**sizes_of(shapes, num_heads), num_classes=num_classes)
  except ValueError as error:
    raise InputError(f'{origin}: {error}') from error
  _require_our_positions(state, module.hidden_size, origin)
  state = {name: array for name, array in state.items() if name != 'pos_embed'}
  size = 2 * module.patch_size, patches[1]
  return module, converted_dit(module, size, state, NAMES, 'blocks.{}.', origin)


def sizes_of(shapes: Mapping[str, tuple[int, ...]], num_heads: int = 0) -> dict[str, Any]:
  """Returns the arguments of DiT for a file's arrays, but num_classes. num_heads: as of load."""
  width, _, patch, _ = shapes['x_embedder.proj.weight']
  blocks = (re.match(r'blocks\.(\d+)\.', name) for name in shapes)
  return {
    'patch_size': patch,
    'hidden_size': width,
    'depth': 1 + max((int(found[1]) for found in blocks if found), default=-1),
    'num_heads': num_heads or heads_of(width),
    'mlp_ratio': shapes.get('blocks.0.mlp.fc1.bias', (4 * width,))[0] / width,
    'frequency_shift': 0,
    'out_channels': shapes['final_layer.linear.weight'][0] // patch**2,
  }


def heads_of(width: int) -> int:
  """Returns the number of heads of the published model of this width."""
  return max(width // HEAD_WIDTH.get(width, 64), 1)


def _require_our_positions(state: Mapping[str, np.ndarray], width: int, origin: str) -> None:
  """Raises: InputError if the stored positions are not the frozen sinusoids that we compute."""
  stored = state.get('pos_embed')
  if stored is None:
    return
  side = int(np.sqrt(stored.shape[1]))
  ours = dit.position_embedding(side, side, width)
  if stored.shape[1:] != ours.shape or not np.allclose(stored[0], ours, atol=1e-5):
    raise InputError(f'{origin}: pos_embed {stored.shape} is not the published sinusoids')
