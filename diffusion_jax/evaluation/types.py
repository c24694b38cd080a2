"""What feature networks give and metrics take."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from diffusion_jax.types import Array, DataSource, PyTree


class FeatureStats(NamedTuple):
  """mean (D,) and unbiased covariance (D, D) of features, float64."""

  mean: np.ndarray
  covariance: np.ndarray


class FeatureSet(NamedTuple):
  """Features of N images.

  features: (N, D) float32, or None where only their statistics are known (a published reference).
  logits: (N, C) float32, or None. labels: (N,) int32, or None.
  stats: given ones, which hold for FID instead of those of `features`; usually None.
  """

  features: np.ndarray | None
  logits: np.ndarray | None
  labels: np.ndarray | None
  stats: FeatureStats | None = None


class Sizes(NamedTuple):
  """What is known before any feature: how many images, 0 where there are only statistics; and D."""

  num_samples: int
  num_reference: int
  num_features: int


class Context(NamedTuple):
  """What a feature network may need to be built.

  images: split 'train' or 'holdout' -> its images. cache_dir: for what is kept.
  """

  images: Callable[[str], DataSource]
  cache_dir: Path
  inception_weights: str
  allow_pickle: bool


class FeatureNetwork(Protocol):
  """Images to features, a pure function to be compiled by whoever calls it.

  name, digest (of the weights), resize, notes and warnings go into every result. params: of apply.
  knows_labels: whether the logits are of the classes of the data.
  """

  name: str
  digest: str
  resize: str
  knows_labels: bool
  notes: Mapping[str, float]
  warnings: Sequence[str]
  params: PyTree

  def apply(self, params: PyTree, images: Array) -> tuple[Array, Array | None]:
    """images (B,H,W,C) uint8 -> features (B, D) float32, logits (B, C) float32 or None."""


class Metric(Protocol):
  """A plug-in of diffusion_jax/evaluation: a dataclass of its options.

  names: of its numbers, deviations aside.
  """

  names: Sequence[str]

  def check(self, sizes: Sizes) -> list[str]:
    """Warnings about numbers that will mislead. Raises: ValueError if there can be no number."""

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Name -> number; NAME_std is the deviation of NAME. Nothing where a set lacks what it takes."""
