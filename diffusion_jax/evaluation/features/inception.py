"""The network of FID and Inception Score as published: InceptionV3 of 2015-12-05, in float32."""

import dataclasses

from diffusion_jax.evaluation.types import Context, FeatureNetwork
from diffusion_jax.models.inception import RESIZE, InceptionV3
from diffusion_jax.pretrained import inception as pretrained
from diffusion_jax.types import Array, PyTree


def apply(params: PyTree, images: Array) -> tuple[Array, Array]:
  """images (B,H,W,1 or 3) uint8 -> features (B, 2048), logits without bias (B, 1008)."""
  return InceptionV3().apply({'params': params}, images)


@dataclasses.dataclass(frozen=True)
class Inception:
  """The network with the weights of config.eval.inception_weights."""

  def build(self, context: Context) -> FeatureNetwork:
    """Its digest is the SHA-256 of the weights' file. Raises: as pretrained.inception.load."""
    path, allowed = context.inception_weights, context.allow_pickle
    found = pretrained.load(path, context.cache_dir, allow_pickle=allowed)
    params = pretrained.fold(found.state, path or pretrained.FILE)
    return FeatureNetwork('inception', found.sha256, apply, params, RESIZE)
