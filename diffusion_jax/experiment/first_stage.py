"""Loads the autoencoder of a latent system, and keeps a copy of it in the work directory."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.config.options import options_of
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.autoencoder import module_of
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.pretrained import compvis, diffusers, weights
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.runtime.files import replacing
from diffusion_jax.runtime.patience import alive
from diffusion_jax.types import PyTree

KIND = 'diffusion_jax autoencoder'
SIZES = (*options_of(AutoencoderKL), 'image_channels')
ADVICE = (
  'a work directory that trained one (configs/vae.py), a .ckpt or .safetensors of CompVis, or a '
  'diffusers AutoencoderKL directory'
)


@dataclasses.dataclass(frozen=True, eq=False)
class FirstStage:
  """An autoencoder. params: float32 NumPy. fingerprint: that of params. origin: the path read."""

  module: AutoencoderKL
  params: PyTree
  fingerprint: str
  origin: str


def load(config: Config) -> FirstStage:
  """Loads the autoencoder of config.vae.checkpoint.

  Raises: InputError if there is none, or its sizes or fingerprint differ from config.vae; DamagedError.
  """
  if not config.vae.checkpoint:
    raise InputError(f'config.vae.checkpoint is empty; config.space latent needs {ADVICE}')
  path = Path(config.vae.checkpoint).expanduser().absolute()
  with alive(f'reading the autoencoder {path}'):
    module, params = _read(path, config.allow_pickle)
  _require_sizes(path, module, module_of(config, jnp.float32), config.data.image_size)
  found = fingerprint_of(params)
  if config.vae.fingerprint not in ('', found):
    raise InputError(
      f'{path}: the autoencoder {found}, but config.vae.fingerprint is {config.vae.fingerprint}, '
      'the autoencoder that this run was trained with and keeps a copy of; leave '
      '--config.vae.checkpoint out, or train in another workdir'
    )
  return FirstStage(module, params, found, str(path))


def _read(path: Path, allow_pickle: bool) -> tuple[AutoencoderKL, PyTree]:
  if not path.exists():
    raise InputError(f'config.vae.checkpoint: {path}: no such file or directory; give {ADVICE}')
  if (path / stored.FILE).is_file() and 'objective' in weights.read_json(path / stored.FILE):
    return _from_workdir(path)
  if path.is_dir():
    if not (path / 'config.json').is_file() and not (path / 'model_index.json').is_file():
      raise InputError(f'config.vae.checkpoint: {path}: no config.json in it; give {ADVICE}')
    module, params = diffusers.load(path, allow_pickle=allow_pickle)
    if not isinstance(module, AutoencoderKL):
      raise InputError(f'config.vae.checkpoint: {path}: a {type(module).__name__}; give {ADVICE}')
    return module, params
  if path.suffix == '.safetensors':
    metadata = weights.read_metadata(path)
    if metadata.get('kind') == KIND:
      return _from_copy(path, metadata)
  return compvis.load(path, allow_pickle=allow_pickle)


def _from_workdir(folder: Path) -> tuple[AutoencoderKL, PyTree]:
  mapping = stored.load(folder)
  name = mapping['objective']['name']
  if name != 'autoencoder':
    raise InputError(
      f'config.vae.checkpoint: {folder}: trained with config.objective.name {name!r}; give {ADVICE}'
    )
  sizes = {name: mapping['vae'][name] for name in options_of(AutoencoderKL)}
  module = AutoencoderKL(**sizes, image_channels=mapping['data']['channels'])
  averages = {'ema': {'model': compvis.autoencoder_params(module)}}
  return module, newest_fields(folder, {'averages': averages})['averages']['ema']['model']


def newest_fields(folder: Path, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
  """Reads fields of the state in a work directory's newest good checkpoint, NumPy.

  abstract: field -> ShapeDtypeStructs. Raises: InputError if it has none; DamagedError.
  """
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), abstract)
  restored = None
  if stored.has_checkpoint(folder):
    with contextlib.closing(Checkpoints(folder / 'checkpoints', read_only=True)) as checkpoints:
      restored = checkpoints.restore(wanted, partial=True)
  if restored is None:
    raise InputError(f'{folder}: no finished checkpoint in it')
  for step, reason in restored.damaged.items():
    print(f'{folder}: checkpoint of step {step} is damaged ({reason}); using step {restored.step}')
  return jax.device_get(restored.state)


def _require_sizes(
  path: Path, found: AutoencoderKL, wanted: AutoencoderKL, image_size: int
) -> None:
  different = [name for name in SIZES if getattr(found, name) != getattr(wanted, name)]
  if different:
    fields = [
      f'  config.{"data.channels" if name == "image_channels" else f"vae.{name}"}: '
      f'got {getattr(wanted, name)}, the file has {getattr(found, name)}'
      for name in different
    ]
    shapes = [
      'x'.join(map(str, (*[image_size // module.factor] * 2, module.embed_channels)))
      for module in (wanted, found)
    ]
    raise InputError(
      f'{path}: an autoencoder of other sizes, whose latents of {image_size} px images are '
      f'{shapes[1]}, not {shapes[0]}:\n' + '\n'.join(fields)
    )


def fingerprint_of(params: PyTree) -> str:
  """Digests the names, shapes and values of all arrays to 16 hexadecimal digits."""
  digest = hashlib.sha256()
  for name, values in sorted(_flat(params).items()):
    digest.update(f'{name} {values.shape}\n'.encode())
    digest.update(values)
  return digest.hexdigest()[:16]


def _flat(params: PyTree) -> dict[str, np.ndarray]:
  flat = flatten_dict(params, sep='/')
  return {name: np.ascontiguousarray(values, np.float32) for name, values in flat.items()}


def save_copy(workdir: Path, first: FirstStage, *, replace: bool) -> None:
  """Writes DIR/vae.safetensors, so that a run can always decode what it samples.

  Raises: InputError if it cannot be written.
  """
  from safetensors import SafetensorError
  from safetensors.numpy import save_file

  path = workdir / stored.AUTOENCODER
  if not replace and path.exists() and _is_whole(path):
    return
  metadata = {
    'kind': KIND,
    'sizes': json.dumps({name: getattr(first.module, name) for name in SIZES}),
    'fingerprint': first.fingerprint,
    'origin': first.origin,
  }
  try:
    with replacing(path) as stream:
      save_file(_flat(first.params), stream.name, metadata)
  except (OSError, SafetensorError) as error:
    raise InputError(f'{path}: cannot be written ({error})') from error


def _is_whole(path: Path) -> bool:
  try:
    _from_copy(path, weights.read_metadata(path))
  except (DamagedError, KeyError, ValueError, TypeError):
    return False
  return True


def _from_copy(path: Path, metadata: Mapping[str, Any]) -> tuple[AutoencoderKL, PyTree]:
  sizes = json.loads(metadata['sizes'])
  module = AutoencoderKL(**{**sizes, 'channel_mult': tuple(sizes['channel_mult'])})
  params = unflatten_dict(weights.read_state(path, allow_pickle=False), sep='/')
  if fingerprint_of(params) != metadata['fingerprint']:
    raise DamagedError(
      f'{path}: not what was written (its fingerprint is not {metadata["fingerprint"]}); delete it and '
      f'give the original: --config.vae.checkpoint={metadata["origin"]}'
    )
  return module, params
