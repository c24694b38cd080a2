"""Frechet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

|mu_1 - mu_2|^2 + tr(C_1) + tr(C_2) - 2 tr((C_1^(1/2) C_2 C_1^(1/2))^(1/2)). For any A with A A^T = C_1 the
matrix inside the root has the eigenvalues of A^T C_2 A, which is symmetric, so that they are found without
forming a root, and are real and not negative but for rounding.
"""

import dataclasses

import numpy as np
from scipy.linalg import LinAlgError, blas, eigh

from diffusion_jax.evaluation.types import FeatureSet, FeatureStats, Metric, Sizes

ROWS = 1000  # Features that are centred at once: their float64 copy stays small.
SIDE = 128


def feature_stats(features: np.ndarray) -> FeatureStats:
  """(N, D) -> mean (D,) and unbiased covariance (D, D), float64.

  The mean of float32 features is summed in float32, because torch-fidelity's is: a sum in float64 would
  move FID from its, and so from published numbers, by up to 5e-5 at N = 5,000 and 1e-3 at 50,000.
  """
  count, size = features.shape
  centre = np.mean(features, axis=0, dtype=np.float64)
  upper = np.zeros((size, size), order='F')
  for start in range(0, count, ROWS):
    centred = features[start : start + ROWS] - centre
    upper = blas.dsyrk(1 / (count - 1), centred.T, beta=1, c=upper, overwrite_c=True)
  return FeatureStats(np.mean(features, axis=0).astype(np.float64), mirrored(upper))


def mirrored(upper: np.ndarray) -> np.ndarray:
  """(D, D), zero below its diagonal -> symmetric, in place; in squares, which the cache can hold."""
  parts = [slice(start, start + SIDE) for start in range(0, len(upper), SIDE)]
  for number, rows in enumerate(parts):
    upper[rows, rows] += np.triu(upper[rows, rows], 1).T
    for columns in parts[number + 1 :]:
      upper[columns, rows] = upper[rows, columns].T
  return upper.T


def distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
  """float64 means and covariances -> the distance, never negative."""
  trace = np.trace(cov_1) + np.trace(cov_2) - 2 * trace_of_root(cov_1, cov_2)
  return float(max(np.square(mean_1 - mean_2).sum() + trace, 0.0))


def trace_of_root(cov_1: np.ndarray, cov_2: np.ndarray) -> float:
  """tr((C_1^(1/2) C_2 C_1^(1/2))^(1/2)) of covariances (D, D), singular ones too."""
  varies = (np.diagonal(cov_1) > 0) & (np.diagonal(cov_2) > 0)  # Other features add nothing to it.
  if not varies.any():
    return 0.0
  if not varies.all():
    cov_1, cov_2 = (cov[np.ix_(varies, varies)] for cov in (cov_1, cov_2))
  try:  # A is C_1's Cholesky factor, by LAPACK's sygv: it wants column-major arrays and the upper half.
    values = eigh(
      cov_2.T, cov_1.T, lower=False, type=2, eigvals_only=True, driver='gv', check_finite=False
    )
  except LinAlgError:  # There is none: A is made of the eigenvectors that are not rounding errors.
    squares, vectors = np.linalg.eigh(cov_1)
    kept = squares > len(squares) * np.finfo(squares.dtype).eps * squares[-1]
    factor = vectors[:, kept] * np.sqrt(squares[kept])  # (D, rank)
    values = np.linalg.eigvalsh(factor.T @ cov_2 @ factor)
  return float(np.sqrt(np.clip(values, 0, None)).sum())


@dataclasses.dataclass(frozen=True)
class FID(Metric):
  """{'frechet_distance'} of samples against the reference."""

  names = ('frechet_distance',)

  def check(self, sizes: Sizes) -> list[str]:
    """A warning for each set that is too small for its covariance to have full rank."""
    if sizes.num_samples < 2:
      raise ValueError(f'num_samples: got {sizes.num_samples}, allowed >= 2: it takes a covariance')
    if sizes.num_reference == 1:
      raise ValueError('reference: got 1 image, allowed >= 2: it takes a covariance')
    sets = {'samples': sizes.num_samples, 'reference images': sizes.num_reference}
    return [
      f'the covariance of {count:,} {what} has rank {count - 1:,} of {sizes.num_features:,}: FID is '
      'biased upwards, and comparable only with FIDs of the same numbers of images'
      for what, count in sets.items()
      if 0 < count < sizes.num_features
    ]

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    fitted = [s.stats or feature_stats(s.features) for s in (samples, reference)]
    return {'frechet_distance': distance(*fitted[0], *fitted[1])}
