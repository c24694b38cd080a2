"""Examples in memory, or mapped into it, as a DataSource."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from diffusion_jax.types import element_of


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """values: (N, ...), called `name` in batches: images (N, H, W, C) uint8, unless that says otherwise.

  labels: (N,) int32, or None: all 0.
  """

  values: np.ndarray
  fingerprint: str
  labels: np.ndarray | None = None
  label_names: Sequence[str] = ()
  name: str = 'image'

  @property
  def num_examples(self) -> int:
    return len(self.values)

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return element_of(self.values.shape[1:], self.name, self.values.dtype)

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """indices (n,) -> values (n, ...), label (n,) int32."""
    labels = np.zeros(len(indices), np.int32) if self.labels is None else self.labels[indices]
    return {self.name: self.values[indices], 'label': labels}
