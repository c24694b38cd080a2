"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2).

A set covers what lies within a ball around one of its features that reaches to the k-th nearest other one.
Precision is the share of samples that the reference covers, recall the share of the reference that the
samples cover.
"""

import dataclasses

import numpy as np

from diffusion_jax.config.options import COUNT, option
from diffusion_jax.evaluation.nearest_neighbours import blocks, nearest
from diffusion_jax.evaluation.types import FeatureSet, Metric, Sizes, require_images


@dataclasses.dataclass(frozen=True)
class PrecisionRecall(Metric):
  """{'precision', 'recall'} in 0..1."""

  neighbours: int = option(3, 'k: the distance to the k-th nearest feature is the radius.', COUNT)
  names = ('precision', 'recall')

  def check(self, sizes: Sizes) -> list[str]:
    """Raises: ValueError if a feature has fewer neighbours than that."""
    require_images(sizes, 'neighbours', self.neighbours, self.neighbours + 1, 'fewer than')
    return []

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    if reference.features is None:
      return {}
    made, real = (np.asarray(s.features, np.float32) for s in (samples, reference))
    # The nearest of all is the feature itself.
    made_radii, real_radii = (
      np.square(nearest(x, x, self.neighbours + 1)[1][:, -1]) for x in (made, real)
    )
    made_covered, real_covered = np.zeros(len(made), bool), np.zeros(len(real), bool)
    for rows, squared in blocks(made, real):
      made_covered[rows] = (squared <= real_radii).any(axis=1)
      real_covered |= (squared <= made_radii[rows, None]).any(axis=0)
    return {'precision': float(made_covered.mean()), 'recall': float(real_covered.mean())}
