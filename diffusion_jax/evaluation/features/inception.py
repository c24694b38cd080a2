"""The network of FID and Inception Score as published: InceptionV3 of 2015-12-05, in float32."""

import dataclasses
from collections.abc import Mapping, Sequence

from diffusion_jax.evaluation.types import Context
from diffusion_jax.models.inception import RESIZE, InceptionV3
from diffusion_jax.pretrained import inception as pretrained
from diffusion_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class InceptionFeatures:
  """digest: SHA-256 of the file of its weights."""

  params: PyTree
  digest: str
  name: str = 'inception'
  resize: str = RESIZE
  knows_labels: bool = False

  @property
  def notes(self) -> Mapping[str, float]:
    return {}

  @property
  def warnings(self) -> Sequence[str]:
    return ()

  def apply(self, params: PyTree, images: Array) -> tuple[Array, Array]:
    """images (B,H,W,1 or 3) uint8 -> features (B, 2048), logits without bias (B, 1008)."""
    return InceptionV3().apply({'params': params}, images)


@dataclasses.dataclass(frozen=True)
class Inception:
  """The network with the weights of config.eval.inception_weights."""

  def build(self, context: Context) -> InceptionFeatures:
    """Raises: InputError, DamagedError: as pretrained.inception.load."""
    path, allowed = context.inception_weights, context.allow_pickle
    found = pretrained.load(path, context.cache_dir, allow_pickle=allowed)
    return InceptionFeatures(pretrained.fold(found.state, path or pretrained.FILE), found.sha256)
