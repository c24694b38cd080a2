"""Raw pixels as features, in units of 0..pixel_range: exact, and only meaningful for tiny images."""

import dataclasses

import jax.numpy as jnp

from diffusion_jax.config.options import option
from diffusion_jax.evaluation.types import Context, FeatureNetwork
from diffusion_jax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Pixels:
  """Raw pixels."""

  pixel_range: float = option(255.0, 'Upper end of the scale: pixels become 0..pixel_range.')

  def build(self, context: Context) -> FeatureNetwork:
    """The context is not needed."""
    del context
    return FeatureNetwork('pixels', f'0..{self.pixel_range:g}', self.apply)

  def apply(self, params: PyTree, images: Array) -> tuple[Array, None]:
    """images (B,H,W,C) uint8 -> features (B, H W C) without logits."""
    del params
    return images.reshape(len(images), -1).astype(jnp.float32) * (self.pixel_range / 255), None
