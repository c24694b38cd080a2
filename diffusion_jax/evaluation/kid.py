"""Kernel distance, an unbiased estimate of a squared MMD (Binkowski et al. 2018, arXiv:1801.01401, Section 4).

With k(x, y) = (x . y / D + 1)^3 and sets x, y of m features each
mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),
and of that the mean and deviation over random subsets. It has no bias in N, and may be negative.
"""

import dataclasses

import numpy as np

from diffusion_jax.config.options import COUNT, at_least, option
from diffusion_jax.evaluation.types import FeatureSet, Metric, Sizes, require_images, with_deviation

SUBSET_SEED = 2020  # torch-fidelity's.


def kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """(m, D), (m, D) float32 -> sums of k over all pairs and over the diagonal.

  Products in float32, whose errors average out over the pairs; their powers are summed in float64,
  for the estimate is a small difference of large sums.
  """
  base = np.asarray(x @ y.T, np.float64)  # (m, m)
  base /= x.shape[1]
  base += 1
  return float(np.vdot(base * base, base)), float(np.sum(np.diagonal(base) ** 3))


def squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
  """The unbiased estimate from as many features (m, D) float32 of each set, m >= 2."""
  m = len(x)
  within = sum(total - diagonal for total, diagonal in (kernel_sums(x, x), kernel_sums(y, y)))
  return within / (m * (m - 1)) - 2 * kernel_sums(x, y)[0] / m**2


@dataclasses.dataclass(frozen=True)
class KID(Metric):
  """{'kernel_distance', 'kernel_distance_std'}: mean and deviation over subsets of both sets."""

  subsets: int = option(100, 'Subsets to draw.', COUNT)
  subset_size: int = option(1000, 'Features of each set in a subset.', at_least(2))
  names = ('kernel_distance',)

  def check(self, sizes: Sizes) -> list[str]:
    """Raises: ValueError if a subset is larger than a set."""
    require_images(sizes, 'subset_size', self.subset_size, self.subset_size, 'up to')
    return []

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    if reference.features is None:
      return {}
    sets = [np.asarray(s.features, np.float32) for s in (samples, reference)]
    rng = np.random.RandomState(SUBSET_SEED)
    values = [
      squared_mmd(*(s[rng.choice(len(s), self.subset_size, replace=False)] for s in sets))
      for _ in range(self.subsets)
    ]
    return with_deviation('kernel_distance', values)
