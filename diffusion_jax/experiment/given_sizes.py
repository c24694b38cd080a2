"""Reads the sizes of the network in config.init_from for a config that does not give them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.config.fields import with_values
from diffusion_jax.config.options import fixed_options, options_of
from diffusion_jax.config.plugins import key_of, load_plugin
from diffusion_jax.errors import Stop
from diffusion_jax.experiment import stored
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.pretrained import diffusers, dit, weights


def adopt(
  mapping: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
  """Sets the sizes of config.init_from where no flag does. Returns: the config, and the changes."""
  path = Path(mapping['init_from']).expanduser()
  try:
    sizes = _sizes(path, mapping)
  except (Stop, OSError, ValueError, KeyError, TypeError):
    return dict(mapping), []  # Reading the weights reports the error.
  return with_sizes(mapping, sizes, overrides)


def with_sizes(
  mapping: Mapping[str, Any], sizes: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
  """Sets these sizes (path -> value) where no flag does. Returns: the config, and the changes."""
  if overrides.get('model.name', sizes.get('model.name')) != sizes.get('model.name'):
    return dict(mapping), []  # Another network: reading the weights refuses it.
  new = {path: value for path, value in sizes.items() if path not in overrides}
  old = {path: stored.value_at(mapping, path) for path in new}
  changed = [f'config.{p}: {old[p]!r} -> {new[p]!r}' for p in new if old[p] != new[p]]
  return with_values(mapping, new), changed


def of_workdir(folder: Path, space: str) -> dict[str, Any]:
  """Returns the sizes that a work directory was trained with. Raises: as stored.load."""
  trained = stored.load(folder)
  name = trained['model']['name']
  key = key_of(name)
  sizes = {
    'model.name': name,
    **{
      f'model.{key}.{option}': trained['model'][key][option]
      for option in fixed_options(load_plugin('models', name))
    },
    **{f'process.{field}': value for field, value in trained['process'].items()},
  }
  if space == trained['space'] == 'latent':
    fields = (*options_of(AutoencoderKL), 'shift')
    sizes |= {f'vae.{field}': trained['vae'][field] for field in fields}
  return sizes


def _sizes(path: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  config = path / stored.FILE
  if not path.is_dir():
    return _of_published(path, mapping)
  if 'objective' not in (found := weights.read_json(config)):
    return _of_diffusers(found)
  if found['objective']['name'] == 'autoencoder':
    return {}
  sizes, copy = of_workdir(path, mapping['space']), path / stored.AUTOENCODER
  if mapping['space'] == 'latent' and not mapping['vae']['checkpoint'] and copy.is_file():
    sizes['vae.checkpoint'] = str(copy.absolute())
  return sizes


def _of_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sizes of a DiTTransformer2DModel by its config.json."""
  return _of_dit(diffusers.dit_sizes_of(config), config['in_channels'])


def _of_published(path: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the sizes of a published DiT by its arrays; the file does not give the number of heads."""
  shapes = weights.read_shapes(path, allow_pickle=mapping['allow_pickle'])
  width, channels, _, _ = shapes['x_embedder.proj.weight']
  given = mapping['model']['dit']
  heads = given['num_heads'] if given['hidden_size'] == width else 0
  return _of_dit(dit.sizes_of(shapes, heads), channels)


def _of_dit(sizes: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
  return {
    'model.name': 'dit',
    **{f'model.dit.{name}': sizes[name] for name in options_of(DiT) if name in sizes},
    'process.learned_variance': sizes['out_channels'] == 2 * in_channels,
  }
