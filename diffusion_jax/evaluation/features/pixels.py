"""Raw pixels as features, in units of 0..pixel_range: exact, and only meaningful for tiny images."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from diffusion_jax.evaluation.types import Context
from diffusion_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Pixels:
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


def build(*, context: Context, pixel_range: float) -> Pixels:
  """The context is not needed."""
  del context
  return Pixels(pixel_range)
