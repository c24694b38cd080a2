"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1 and 2).

A set covers what lies within a ball around one of its features that reaches to the k-th nearest other one.
Precision is the share of samples that the reference covers, recall the share of the reference that the
samples cover.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffusion_jax.config.options import COUNT, option, require_options
from diffusion_jax.evaluation.nearest_neighbours import blocks, nearest
from diffusion_jax.evaluation.types import FeatureSet, Sizes


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """{'precision', 'recall'} in 0..1."""

  neighbours: int = option(3, 'The k of the k-th nearest, whose distance is the radius.', COUNT)

  def __post_init__(self):
    require_options(self)

  @property
  def names(self) -> Sequence[str]:
    return ('precision', 'recall')

  def check(self, sizes: Sizes) -> list[str]:
    """Raises: ValueError if a feature has fewer neighbours than that."""
    if not sizes.num_reference:
      raise ValueError('reference: got statistics alone, allowed images: it takes their features')
    sets = {'samples': sizes.num_samples, 'reference': sizes.num_reference}
    what = min(sets, key=sets.get)
    if sets[what] <= self.neighbours:
      raise ValueError(
        f'neighbours: got {self.neighbours}, allowed fewer than the {sets[what]} images of the {what}'
      )
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
