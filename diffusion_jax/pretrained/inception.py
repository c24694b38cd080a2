"""Finds and verifies the weights of the FID network, and converts them once to safetensors.

The file is torch-fidelity's weights-inception-2015-12-05-6726825d.pth. Another network in the same
form can be given instead, for tests; its numbers are then not FIDs, and its hash stands beside them.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from diffusion_jax.errors import DamagedError, InputError, listed
from diffusion_jax.models.inception import InceptionV3
from diffusion_jax.pretrained import weights
from diffusion_jax.runtime import files, packages
from diffusion_jax.types import PyTree

FILE = 'weights-inception-2015-12-05-6726825d.pth'
URL = f'https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}'
SHA256 = '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2'
BATCH_NORM_EPSILON = 1e-3
NAMED_BY_HASH = re.compile(r'-([0-9a-f]{8,})\.')  # The names that torch.hub gives.


class InceptionWeights(NamedTuple):
  """state: PyTorch's names -> float32 arrays. sha256: of the .pth file that they came in."""

  state: Mapping[str, np.ndarray]
  sha256: str


def load(path: str, cache_dir: Path, *, allow_pickle: bool = False) -> InceptionWeights:
  """Reads the file `path`; '' looks in cache_dir, in torch's cache, and downloads at last.

  A .pth is written to cache_dir as .safetensors, from which torch is not needed any more.
  Raises: InputError that says which file goes where; DamagedError if a file has other content.
  """
  if path:
    given = Path(path).expanduser()
    if not given.is_file():
      raise InputError(f'config.eval.inception_weights: {given}: no such file\n{advice(cache_dir)}')
    return _load_file(given, cache_dir, allow_pickle)
  converted = _converted(cache_dir, SHA256)
  if converted.exists():
    return read_converted(converted)
  return _load_file(_found_or_downloaded(cache_dir), cache_dir, allow_pickle)


def advice(cache_dir: Path) -> str:
  """Says which file, with which hash, goes where."""
  lines = {
    'file': URL,
    'SHA-256': SHA256,
    'goes to': torch_cache() / FILE,
    'or': '--config.eval.inception_weights=PATH',
    'without torch': f'{_converted(cache_dir, SHA256)}, which is made of it once and can be copied',
    'or instead': '--config.eval.features.name=dataset_classifier, for images that are not photographs',
  }
  return '\n'.join(f'  {name:<14} {value}' for name, value in lines.items())


def torch_cache() -> Path:
  """Returns where torch.hub, and with it torch-fidelity, keeps downloads."""
  cache = os.environ.get('XDG_CACHE_HOME', '~/.cache')
  home = Path(os.environ.get('TORCH_HOME', f'{cache}/torch')).expanduser()
  return home / 'hub' / 'checkpoints'


def _found_or_downloaded(cache_dir: Path) -> Path:
  target = torch_cache() / FILE
  if target.exists():
    return target
  lacking = (
    'config.eval.features.name: inception needs weights that are not here, and downloading them'
  )
  packages.require('torch', 'eval', lacking, f'bring the weights:\n{advice(cache_dir)}')
  from torch.hub import download_url_to_file

  try:
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f'downloading {URL}', flush=True)
    download_url_to_file(URL, str(target), hash_prefix=SHA256)
  except (OSError, RuntimeError) as error:  # No network, another file.
    lines = str(error).splitlines() or [type(error).__name__]
    raise InputError(f'{lacking} failed ({lines[0][:200]})\n{advice(cache_dir)}') from error
  return target


def _load_file(path: Path, cache_dir: Path, allow_pickle: bool) -> InceptionWeights:
  if path.suffix == '.safetensors':
    return read_converted(path)
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  named = NAMED_BY_HASH.search(path.name)
  if named and not found.startswith(named[1]):
    raise DamagedError(
      f'{path}: its SHA-256 is {found}, its name says {named[1]}: not whole, or another file; '
      f'delete it\n{advice(cache_dir)}'
    )
  if _converted(cache_dir, found).exists():
    return read_converted(_converted(cache_dir, found))
  # A file whose content is known can do no harm, and only tensors are read of any.
  state = weights.read_state(path, allow_pickle=allow_pickle or found == SHA256)
  state = {name: array for name, array in state.items() if 'num_batches_tracked' not in name}
  fold(state, str(path))  # Fails before keeping a file that does not fit.
  content = InceptionWeights(state, found)
  print(f'{path}: converted to {keep(cache_dir, content)}')
  return content


def _converted(cache_dir: Path, sha256: str) -> Path:
  return Path(cache_dir) / 'features' / f'inception-{sha256[:8]}.safetensors'


def keep(cache_dir: Path, content: InceptionWeights) -> Path:
  """Writes the .safetensors file that `load` finds. Returns: its path."""
  path = _converted(cache_dir, content.sha256)
  state = {name: np.ascontiguousarray(array) for name, array in content.state.items()}
  files.write(path, save(state, {'sha256': content.sha256, 'content': _content_digest(state)}))
  return path


def read_converted(path: Path) -> InceptionWeights:
  """Reads a .safetensors file that `load` wrote.

  Raises: DamagedError if its content is not what was written; InputError for one of another origin.
  """
  metadata = weights.read_metadata(path)
  if not {'sha256', 'content'} <= set(metadata):
    raise InputError(
      f'{path}: not converted here (no hash of its origin); give the .pth file, whose hash is known'
    )
  state = weights.read_state(path, allow_pickle=False)
  if _content_digest(state) != metadata['content']:
    raise DamagedError(f'{path}: not what was written; delete it, and it is converted again')
  return InceptionWeights(state, metadata['sha256'])


def fold(state: Mapping[str, np.ndarray], origin: str) -> PyTree:
  """Parameters of models.inception.InceptionV3: kernels and biases with the batch norms in them.

  gamma (W x - mean) / sqrt(variance + epsilon) + beta is a convolution again.
  Raises: InputError that names every array that is missing or misshapen.
  """
  abstract = weights.abstract_params(InceptionV3(), jnp.zeros((1, 32, 32, 3), jnp.uint8))
  params, problems = {}, []
  for name, wanted in abstract.items():
    norm = [f'{name}.bn.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var')]
    parts = ['fc.weight'] if name == 'fc' else [f'{name}.conv.weight', *norm]
    missing = [part for part in parts if part not in state]
    if missing:
      problems += [f'missing {part}' for part in missing]
      continue
    params[name] = _folded(*(np.asarray(state[part], np.float64) for part in parts))
    shapes = (params[name]['kernel'].shape, wanted['kernel'].shape)
    if shapes[0] != shapes[1]:
      problems.append(f'{parts[0]} gives {shapes[0]}, expected {shapes[1]}')
  if problems:
    lines = [f'  {problem}' for problem in problems]
    raise InputError(f"{origin}: not torch-fidelity's InceptionV3:\n{listed(lines, 10)}")
  return params


def _folded(weight, gamma=None, beta=None, mean=None, variance=None) -> dict[str, np.ndarray]:
  if gamma is None:  # The linear map of the logits.
    return {'kernel': weight.T.astype(np.float32)}
  scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
  kernel = weight.transpose(2, 3, 1, 0) * scale  # OIHW -> HWIO
  return {'kernel': kernel.astype(np.float32), 'bias': (beta - mean * scale).astype(np.float32)}


def _content_digest(state: Mapping[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in sorted(state):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(state[name]).tobytes())
  return digest.hexdigest()
