"""Reads foreign weight files and matches their arrays with our parameters by name and shape."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.errors import DamagedError, InputError, listed
from diffusion_jax.runtime import packages
from diffusion_jax.types import PyTree

PICKLES = ('.ckpt', '.pt', '.pth', '.bin')


class Source(NamedTuple):
  """The origin of one of our arrays.

  names: foreign arrays, joined along our last axis (q, k, v). stacked: of these names' '{}', how many
  make our leading axis (scanned blocks); 0: none.
  """

  names: tuple[str, ...]
  stacked: int = 0


def read_state(path: Path, *, allow_pickle: bool) -> dict[str, np.ndarray]:
  """Reads all arrays of a .safetensors file, or of a PyTorch pickle if the user allows that.

  Raises: InputError for a missing file or a pickle that is not allowed; DamagedError for a broken one.
  """
  _require_leave(path, allow_pickle)
  if path.suffix != '.safetensors':
    return {k: v.detach().float().numpy() for k, v in _read_pickle(path, 'cpu').items()}
  with _opened(path, 'flax') as file:  # NumPy has no bfloat16 of its own.
    return {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118


def read_shapes(path: Path, *, allow_pickle: bool) -> dict[str, tuple[int, ...]]:
  """Reads the shapes of these arrays without their values. Raises: as read_state."""
  _require_leave(path, allow_pickle)
  if path.suffix != '.safetensors':
    return {k: tuple(v.shape) for k, v in _read_pickle(path, 'meta').items()}
  with _opened(path, 'numpy') as file:
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _require_leave(path: Path, allow_pickle: bool) -> None:
  """Raises: InputError for a file that is not there, or may not be read."""
  if not path.is_file():
    raise InputError(f'{path}: no such file')
  if path.suffix == '.safetensors':
    return
  if path.suffix not in PICKLES:
    raise InputError(
      f'{path}: got suffix {path.suffix!r}, allowed .safetensors, {", ".join(PICKLES)}'
    )
  if not allow_pickle:
    raise InputError(
      f'{path}: a pickle, which can run code when it is read; if you trust its source, say '
      '--config.allow_pickle=True, or convert it to .safetensors'
    )


@contextlib.contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
  """Opens a .safetensors file. Raises: DamagedError if it is not whole."""
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework=framework) as file:
      yield file
  except (SafetensorError, OSError, ValueError) as error:
    raise DamagedError(f'{path}: not a whole safetensors file ({error})') from error


def read_metadata(path: Path) -> dict[str, str]:
  """Reads the metadata of a .safetensors file. Raises: DamagedError if it is not whole."""
  with _opened(path, 'numpy') as file:
    return file.metadata() or {}


def _read_pickle(path: Path, device: str) -> dict[str, Any]:
  """Reads the tensors of a PyTorch file, and nothing else: weights_only is not negotiable.

  Training programs wrap the mapping of tensors in others; the average is preferred. On device 'meta'
  the tensors have no values.
  """
  packages.require('torch', 'eval', f'{path}: a PyTorch pickle', 'convert it to .safetensors')
  import torch

  try:
    content = torch.load(path, map_location=device, weights_only=True)
  except Exception as error:  # On foreign bytes the reader raises errors of any kind.
    raise DamagedError(
      f'{path}: not a whole PyTorch file of tensors alone ({type(error).__name__}); fetch it again, or '
      'convert it to .safetensors where it can be read'
    ) from error
  for wrapper in ('ema', 'state_dict', 'model'):
    if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
      content = content[wrapper]
  if not isinstance(content, Mapping):
    raise InputError(f'{path}: holds a {type(content).__name__}, not named tensors')
  tensors = {k: v for k, v in content.items() if hasattr(v, 'detach')}
  if not tensors:
    raise InputError(f'{path}: no tensors in it')
  return tensors


def read_json(path: Path) -> dict:
  """Raises: InputError if it is missing, DamagedError if it is no JSON object."""
  try:
    content = json.loads(path.read_text())
  except FileNotFoundError as error:
    raise InputError(f'{path}: no such file') from error
  except (ValueError, RecursionError) as error:
    raise DamagedError(f'{path}: not JSON ({error})') from error
  if not isinstance(content, dict):
    raise DamagedError(f'{path}: not a JSON object')
  return content


def to_flax(path: tuple[str, ...], array: np.ndarray, ndim: int) -> np.ndarray:
  """PyTorch's layout -> Flax's: OIHW -> HWIO, 1x1 convolutions and linear maps (out, in) -> (in, out)."""
  if path[-1] != 'kernel':
    return array
  if array.ndim == 4 and ndim == 2:
    return array[:, :, 0, 0].T
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def convert(
  abstract: PyTree,
  state: Mapping[str, np.ndarray],
  source_of: Callable[[tuple[str, ...]], Source],
  *,
  origin: str,
  transform: Callable[[tuple[str, ...], np.ndarray, int], np.ndarray] = to_flax,
) -> PyTree:
  """Converts `state` to parameters shaped like `abstract`; every array of `state` must be used.

  source_of: path of ours -> Source. transform(path, array, ndim of ours): ours from theirs.
  Raises: InputError that names every missing, unexpected and misshapen array, with both shapes.
  """
  found, used, problems = {}, set(), []
  for path, own in flatten_dict(abstract).items():
    source, wanted = source_of(path), _fused(path, own.shape)
    ndim = len(wanted) - bool(source.stacked)
    rows = []
    for index in range(max(source.stacked, 1)):
      names = [name.format(index) for name in source.names]
      missing = [name for name in names if name not in state]
      problems += [f'missing {name} (for {"/".join(path)})' for name in missing]
      used.update(names)
      if not missing:
        rows.append([transform(path, state[name], ndim) for name in names])
    if len(rows) < max(source.stacked, 1):
      continue
    shapes = [(*row[0].shape[:-1], sum(sum(part.shape[-1:]) for part in row)) for row in rows]
    if len(set(shapes)) > 1:
      odd = next(i for i, shape in enumerate(shapes) if shape != shapes[0])
      problems.append(
        f'{source.names[0].format(odd)} gives {shapes[odd]}, {source.names[0].format(0)} {shapes[0]}'
      )
      continue
    shape = (len(rows), *shapes[0]) if source.stacked else shapes[0]
    if shape != wanted:
      problems.append(f'{source.names[0]} gives {shape}, {"/".join(path)} is {wanted}')
      continue
    array = np.empty(shape, np.result_type(*rows[0]))  # The only copy.
    found[path] = array.reshape(own.shape)
    for target, row in zip(array if source.stacked else [array], rows):
      np.concatenate(row, axis=-1, out=target)
  problems += [f'unexpected {name} {state[name].shape}' for name in sorted(set(state) - used)]
  if problems:
    lines = [f'  {problem}' for problem in problems]
    raise InputError(f'{origin}: does not fit the model:\n{listed(lines, 10)}')
  return unflatten_dict(found)


def _fused(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the shape with the axes (3, heads, head width) of a qkv layer as one."""
  return (*shape[:-3], math.prod(shape[-3:])) if path[-2:-1] == ('qkv',) else shape


def abstract_params(module, *arguments, **named) -> PyTree:
  """Returns ShapeDtypeStructs of a module's parameters."""
  return jax.eval_shape(module.init, jax.random.key(0), *arguments, **named)['params']
