"""Finds and opens the prepared data of a config: images and, for latent systems, their latents."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.config.schema import Config
from diffusion_jax.data import class_lists, latents, packed, sets
from diffusion_jax.data.plan import Recipe
from diffusion_jax.errors import InputError
from diffusion_jax.types import DataSource


@dataclasses.dataclass(frozen=True, eq=False)
class Datasets:
  """The data of a config. stored_meta: the description that a work directory keeps, or None."""

  config: Config
  stored_meta: Mapping[str, Any] | None

  @property
  def recipe(self) -> Recipe:
    """The settings that the prepared set must have."""
    data = self.config.data
    return Recipe(**{field.name: getattr(data, field.name) for field in dataclasses.fields(Recipe)})

  @property
  def folder(self) -> Path:
    """The folder of all prepared sets."""
    return Path(self.config.data.dir).expanduser().absolute()

  def is_prepared(self) -> bool:
    """Returns whether the prepared set exists."""
    return bool(self._matching())

  def _matching(self) -> dict[Path, dict[str, Any]]:
    return sets.matching(self.folder, self.recipe.mapping(), self.config.data.fingerprint)

  @functools.cached_property
  def prepared(self) -> tuple[Path, Mapping[str, Any]]:
    """The folder of the prepared set and its description; nothing is read or verified yet.

    Raises: InputError if there is none.
    """
    data = self.config.data
    return sets.find(self.folder, self.recipe.mapping(), data.fingerprint, data.source)

  def from_source(self) -> tuple[Path, Mapping[str, Any]] | None:
    """Returns the prepared set made from config.data.source, or None."""
    source, found = self.config.data.source, self._matching().items()
    return next((item for item in found if sets.made_from(item[1], source)), None)

  @property
  def meta(self) -> Mapping[str, Any]:
    """The description of the data, from the work directory or from the prepared set."""
    return self.stored_meta or self.prepared[1]

  @property
  def label_names(self) -> Sequence[str]:
    return self.meta['label_names']

  @functools.cached_property
  def _verified(self) -> tuple[Path, Mapping[str, Any]]:
    packed.verify(*self.prepared, full=self.config.data.verify == 'full')
    return self.prepared

  def images(self, split: str) -> DataSource:
    """Opens the images of split 'train' or 'holdout'.

    Raises: InputError if they are not prepared or nothing is held out, DamagedError if they differ
    from what was written.
    """
    self._require(split)
    return packed.open_split(*self._verified, split)

  @functools.cached_property
  def latents_meta(self) -> Mapping[str, Any]:
    """The description of the latents; nothing is read or verified yet.

    Raises: InputError if this autoencoder has not encoded this set.
    """
    return latents.find(*self.prepared, self.config.vae.fingerprint, mirrored=self.config.data.flip)

  @functools.cached_property
  def _verified_latents(self) -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    found = (*self.prepared, self.latents_meta)
    latents.verify(*found, full=self.config.data.verify == 'full')
    return found

  def examples(self, split: str) -> DataSource:
    """Opens what the backbone learns from: images, or their posteriors. Raises: as images."""
    if self.config.space == 'pixel':
      return self.images(split)
    self._require(split)
    return latents.open_split(*self._verified_latents, split, mirrored=self.config.data.flip)

  def _require(self, split: str) -> None:
    if split == 'holdout' and not self.meta['num_holdout']:
      raise InputError(
        f'{self.prepared[0]}: no held-out images, which the held-out loss and evaluation need: '
        'prepare again with --config.data.holdout=NUMBER'
      )

  def train_bytes(self, latent_shape: Sequence[int] | None) -> int:
    """Counts the bytes of all training examples; latent_shape: (h, w, c) in latent space, else None."""
    if latent_shape is None:
      return self.meta['num_train'] * math.prod(self.meta['image_shape'])
    float16_parameters = 2 * 2 * math.prod(latent_shape)
    return self.meta['num_train'] * (1 + self.config.data.flip) * float16_parameters


def meta_without_data(config: Config) -> dict[str, Any]:
  """Describes data that nobody has prepared, with the classes of config.data.class_list.

  Raises: InputError if the class list is a file that cannot be read.
  """
  listed = class_lists.read(config.data.class_list, config.data.label_order)
  if listed is None and config.num_classes == 1000:
    listed = class_lists.named('imagenet', class_lists.imagenet_names())  # Sorted by WNID.
  names = listed.names if listed else [f'class {i}' for i in range(config.num_classes)]
  side = config.data.image_size
  return {
    'name': config.data.name,
    'fingerprint': '',
    'image_shape': [side, side, config.data.channels],
    'label_names': list(names),
    'num_train': 0,
    'num_holdout': 0,
  }
