"""Raw pixels as features, in units of 0..pixel_range: exact, and only meaningful for tiny images."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from diffusion_jax.config.options import option
from diffusion_jax.evaluation.types import Context
from diffusion_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class PixelFeatures:
  """features: (N, H W C) float32."""

  pixel_range: float
  name: str = 'pixels'
  resize: str = 'none'
  knows_labels: bool = False

  @property
  def digest(self) -> str:
    return f'0..{self.pixel_range:g}'

  @property
  def notes(self) -> Mapping[str, float]:
    return {}

  @property
  def warnings(self) -> Sequence[str]:
    return ()

  @property
  def params(self) -> PyTree:
    return {}

  def apply(self, params: PyTree, images: Array) -> tuple[Array, None]:
    """images (B,H,W,C) uint8 -> features without logits."""
    del params
    return images.reshape(len(images), -1).astype(jnp.float32) * (self.pixel_range / 255), None


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Raw pixels."""

  pixel_range: float = option(255.0, 'Pixels are scaled to 0..range.')

  def build(self, context: Context) -> PixelFeatures:
    """The context is not needed."""
    del context
    return PixelFeatures(self.pixel_range)
