"""Images in memory, or mapped into it, as a DataSource."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """images (N, H, W, C) uint8; labels (N,) int32, or None: all 0."""

  images: np.ndarray
  fingerprint: str
  labels: np.ndarray | None = None
  label_names: Sequence[str] = ()

  @property
  def num_examples(self) -> int:
    return len(self.images)

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {
      'image': jax.ShapeDtypeStruct(self.images.shape[1:], np.uint8),
      'label': jax.ShapeDtypeStruct((), np.int32),
    }

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """indices (n,) -> image (n, H, W, C) uint8, label (n,) int32."""
    labels = np.zeros(len(indices), np.int32) if self.labels is None else self.labels[indices]
    return {'image': self.images[indices], 'label': labels}
