"""Reads LPIPS weights: torchvision's VGG16 and the learned linear layers, in one file or two in a folder.

The linear layers are vgg.pth of the LPIPS authors, or weights-vgg16-lpips.pth of torch-fidelity; VGG16
is torchvision's vgg16-397923af.pth. Either may be converted to .safetensors.
"""

from pathlib import Path

import jax.numpy as jnp

from diffusion_jax.errors import InputError
from diffusion_jax.models.perceptual import CHANNELS, LPIPS
from diffusion_jax.pretrained import weights
from diffusion_jax.pretrained.weights import Source
from diffusion_jax.types import PyTree

FIELD = 'config.objective.autoencoder.perceptual_weights'
ADVICE = (
  'expected torchvision\'s VGG16 ("features.0.weight", ...; '
  'https://download.pytorch.org/models/vgg16-397923af.pth) and the linear layers of LPIPS '
  '("lin0.model.1.weight", ...; https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/'
  'weights-vgg16-lpips.pth), in a folder or in one file'
)


def load(path: str | Path, *, allow_pickle: bool = False) -> PyTree:
  """Reads the parameters of models.perceptual.LPIPS, float32 NumPy.

  Raises: InputError that says which files are needed; DamagedError.
  """
  if not str(path):
    raise InputError(
      f'{FIELD} is empty; {ADVICE}; or train without, by '
      '--config.objective.autoencoder.perceptual_weight=0'
    )
  path = Path(path).expanduser()
  files = [path]
  if path.is_dir():
    suffixes = ('.safetensors', *weights.PICKLES)
    files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
  if not path.exists() or not files:
    raise InputError(f'{FIELD}: {path}: no weights there; {ADVICE}')
  wanted = {
    name: array
    for file in files
    for name, array in weights.read_state(file, allow_pickle=allow_pickle).items()
    if name.startswith('features.') or (name.startswith('lin') and name.endswith('weight'))
  }
  if 'features.0.weight' not in wanted or 'lin0.model.1.weight' not in wanted:
    raise InputError(f'{FIELD}: {path}: not complete; {ADVICE}')
  images = jnp.zeros((1, 16, 16, 3))
  abstract = weights.abstract_params(LPIPS(), images, images)
  return weights.convert(abstract, wanted, _source_of, origin=str(path))


def _source_of(path: tuple[str, ...]) -> Source:
  module, leaf = path
  leaf = {'kernel': 'weight', 'bias': 'bias'}[leaf]
  kind, *numbers = module.split('_')
  if kind == 'lin':
    return Source((f'lin{numbers[0]}.model.1.{leaf}',))
  slice_number, number = map(int, numbers)
  before = sum(
    2 * len(widths) + 1 for widths in CHANNELS[:slice_number]
  )  # conv, ReLU; a pool each.
  return Source((f'features.{before + 2 * number}.{leaf}',))
