"""Fills in the fields that a config leaves to the data, before the config is checked.

num_classes              -1  the number of classes of the data; 0 (unconditional) for a single class
data.name                ''  'imagenet100' for its two class lists, otherwise named after the source
data.image_size           0  \\ those of the prepared set; without one, as data/survey.py
data.channels             0  / chooses them for the source
model.dit.patch_size      0  the smallest that cuts x0 into at most 16 x 16 patches
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.config.fields import Leaf, schema, walk, with_values
from diffusion_jax.config.schema import Config
from diffusion_jax.data import class_lists, sets
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.survey import survey
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.stored import value_at

SUFFIXES = re.compile(r'(\.tar)?\.(tar|tgz|gz|bz2|xz|zip)$', re.IGNORECASE)
PATCHES = 16  # Per side.
IMAGENET100 = 'imagenet100'


def open_fields(mapping: Mapping[str, Any]) -> list[str]:
  """Lists the fields that the mapping leaves to the data."""
  paths = ((path.removeprefix('config.'), item) for path, item in walk(schema(Config, mapping)))
  return [
    path
    for path, item in paths
    if isinstance(item, Leaf)
    and item.from_data is not None
    and value_at(mapping, path) == item.from_data
  ]


def as_stored(mapping: Mapping[str, Any], workdir: Path | None) -> dict[str, Any]:
  """Fills in the open fields with the values that a work directory was trained with."""
  if workdir is None or not stored.is_begun(workdir):
    return dict(mapping)
  trained = stored.load(workdir)
  known = {path: value_at(trained, path) for path in open_fields(mapping)}
  return with_values(mapping, {path: value for path, value in known.items() if value is not None})


def resolved(mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Fills in all open fields.

  Raises: InputError if neither a prepared set nor a source determines them; DamagedError: as the readers.
  """
  if not open_fields(mapping):
    return dict(mapping)
  data = mapping['data']
  if 'data.name' in open_fields(mapping):
    name = IMAGENET100 if data['class_list'] in class_lists.SHIPPED else name_of(data['source'])
    mapping = with_values(mapping, {'data.name': name})
  listed = class_lists.read(data['class_list'], data['label_order'])
  if listed and 'num_classes' in open_fields(mapping):
    mapping = with_values(mapping, {'num_classes': conditional(len(listed.ids))})
  if set(open_fields(mapping)) - {'model.dit.patch_size'}:
    mapping = with_values(mapping, of_data(mapping))
  if 'model.dit.patch_size' in open_fields(mapping):
    mapping = with_values(mapping, {'model.dit.patch_size': patch_size(mapping)})
  return mapping


def of_data(mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Returns path -> value of the open fields, from the prepared set or, without one, from the source."""
  data, still_open = mapping['data'], open_fields(mapping)
  recipe = Recipe(**{name: data[name] for name in Recipe.__dataclass_fields__}).mapping()
  known = {key: recipe[key] for key in recipe if f'data.{key}' not in still_open}
  folder = Path(data['dir']).expanduser().absolute()
  found = sets.matching(folder, known, data['fingerprint'])
  own = [path for path, meta in found.items() if sets.made_from(meta, data['source'])]
  if own or not data['source'] or data['fingerprint']:
    _, meta = sets.find(folder, known, data['fingerprint'], data['source'])
    side, _, channels = meta['image_shape']
    values = {'data.name': meta['name'], 'num_classes': conditional(len(meta['label_names']))}
  else:
    held = survey(data['source'], data['class_list'], data['label_order'])
    side, channels = held.image_size, held.channels
    values = {'num_classes': conditional(held.num_classes)}
  values |= {'data.image_size': side, 'data.channels': channels}
  return {path: value for path, value in values.items() if path in still_open}


def conditional(num_classes: int) -> int:
  """Returns the number of classes, 0 (unconditional) for a single one."""
  return num_classes if num_classes > 1 else 0


def name_of(source: str) -> str:
  """Names a set after its source: 'photos' for '/data/photos.tar.gz', '' without a source."""
  if not source:
    return ''
  name = SUFFIXES.sub('', Path(os.path.abspath(Path(source).expanduser())).name)
  return re.sub(r'[^A-Za-z0-9_]+', '_', name).strip('_') or 'images'


def patch_size(mapping: Mapping[str, Any]) -> int:
  """Returns the smallest patch size that cuts x0 into at most 16 x 16 patches."""
  side = mapping['data']['image_size']
  if mapping['space'] == 'latent':
    side //= 2 ** (len(mapping['vae']['channel_mult']) - 1)
  return next(n for n in range(1, side + 1) if side % n == 0 and side // n <= PATCHES)
