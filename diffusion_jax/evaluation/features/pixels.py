"""Raw pixels as features, in units of 0..pixel_range: exact, and only meaningful for tiny images."""

import dataclasses

import numpy as np

from diffusion_jax.evaluation.types import FeatureSet


@dataclasses.dataclass(frozen=True)
class Pixels:
  """features: (N, H W C) float32."""

  pixel_range: float
  name: str = 'pixels'

  @property
  def digest(self) -> str:
    return f'0..{self.pixel_range:g}'

  @property
  def notes(self) -> dict[str, float]:
    return {}

  def extract(self, images: np.ndarray, labels: np.ndarray | None) -> FeatureSet:
    """images (N,H,W,C) uint8, labels (N,) -> features without logits."""
    features = images.reshape(len(images), -1).astype(np.float32) * (self.pixel_range / 255)
    return FeatureSet(features, None, labels)


def build(*, train, holdout, cache_dir, pixel_range: float) -> Pixels:
  """The data sources and the cache are not needed."""
  del train, holdout, cache_dir
  return Pixels(pixel_range)
