"""The types that feature networks return and metrics take."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from diffusion_jax.config.options import require_options
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
  """Facts known before any feature: the number of images, 0 where there are only statistics, and D."""

  num_samples: int
  num_reference: int
  num_features: int


class Context(NamedTuple):
  """Everything that a feature network may be built from.

  images: split 'train' or 'holdout' -> its images. cache_dir: for what is kept.
  """

  images: Callable[[str], DataSource]
  cache_dir: Path
  inception_weights: str
  allow_pickle: bool


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
  """Images to features.

  name, digest (of the weights), resize, notes and warnings go into every result.
  apply: (params, images (B,H,W,C) uint8) -> features (B, D) float32, logits (B, C) float32 or None; a
  pure function, compiled by its caller. knows_labels: whether the logits are of the classes of the data.
  """

  name: str
  digest: str
  apply: Callable[[PyTree, Array], tuple[Array, Array | None]]
  params: PyTree = ()
  resize: str = 'none'
  knows_labels: bool = False
  notes: Mapping[str, float] = dataclasses.field(default_factory=dict)
  warnings: Sequence[str] = ()


class Metric(Protocol):
  """A plug-in of diffusion_jax/evaluation: a dataclass of its options, which it checks.

  names: of its numbers, deviations aside.
  """

  names: Sequence[str]

  def __post_init__(self):
    require_options(self)

  def check(self, sizes: Sizes) -> list[str]:
    """Warnings about numbers that will mislead. Raises: ValueError if there can be no number."""
    del sizes
    return []

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    """Name -> number; NAME_std is the deviation of NAME. Nothing where a set lacks what it takes."""


def require_images(sizes: Sizes, option: str, got: int, least: int, allowed: str) -> None:
  """Raises: ValueError for `option` where a set has fewer than `least` images, or only statistics."""
  if not sizes.num_reference:
    raise ValueError('reference: got statistics alone, allowed images: it takes their features')
  sets = {'samples': sizes.num_samples, 'reference': sizes.num_reference}
  what = min(sets, key=sets.get)
  if sets[what] < least:
    raise ValueError(
      f'{option}: got {got}, allowed {allowed} the {sets[what]} images of the {what}'
    )


def with_deviation(name: str, values: Sequence[float]) -> dict[str, float]:
  """The mean of some values as NAME and their deviation as NAME_std."""
  return {name: float(np.mean(values)), f'{name}_std': float(np.std(values))}
