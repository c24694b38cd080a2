"""What feature networks give and metrics take."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np


class FeatureSet(NamedTuple):
  """N images: features (N, D) float32; logits (N, C) float32 or None; labels (N,) int32 or None."""

  features: np.ndarray
  logits: np.ndarray | None
  labels: np.ndarray | None


class FeatureNetwork(Protocol):
  """name and digest go into every result; extract: images (N,H,W,C) uint8, labels -> FeatureSet."""

  name: str
  digest: str
  notes: dict[str, float]

  def extract(self, images: np.ndarray, labels: np.ndarray | None) -> FeatureSet: ...


Metric = Callable[[FeatureSet, FeatureSet], dict[str, float]]  # (samples, reference) -> numbers
