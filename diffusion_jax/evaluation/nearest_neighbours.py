"""Distances between two sets of features, a block at a time, and the nearest of one for each of the other.

|x - y|^2 = |x|^2 + |y|^2 - 2 x . y, in float32 after the mean of all y has been taken from both: features are
far from zero and near to each other, and without that most digits would cancel.
"""

from collections.abc import Iterator

import numpy as np

MAX_DISTANCES = 2**26  # At once; 256 MiB.
ROUNDING = 1e-5  # Share of |x|^2 below which squared distances are those of equal features.


def blocks(samples: np.ndarray, others: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """(N, D), (M, D) -> rows of the samples and their squared distances (rows, M) float32."""
  centre = np.mean(others, axis=0, dtype=np.float64)
  samples, others = ((x - centre).astype(np.float32) for x in (samples, others))
  norms, norms_of_others = (
    np.einsum('nd,nd->n', x, x, dtype=np.float64).astype(np.float32) for x in (samples, others)
  )
  step = max(1, MAX_DISTANCES // max(others.shape))
  for start in range(0, len(samples), step):
    rows = slice(start, start + step)
    squared = (-2 * samples[rows]) @ others.T
    squared += norms_of_others
    squared += norms[rows, None]
    squared[squared < ROUNDING * norms[rows, None]] = 0
    yield rows, squared


def nearest(samples: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest of the others for each sample, nearest first.

  samples: (N, D), others: (M, D). Returns: indices (N, k) int64 and distances (N, k) float32.
  Raises: ValueError if there are fewer than k others.
  """
  if not 1 <= k <= len(others):
    raise ValueError(f'k: got {k}, allowed 1 to the {len(others)} others')
  indices = np.empty((len(samples), k), np.int64)
  distances = np.empty((len(samples), k), np.float32)
  for rows, squared in blocks(samples, others):
    found = np.argpartition(squared, k - 1, axis=1)[:, :k]
    exact = np.stack(  # Once more, from the differences themselves.
      [np.linalg.norm(samples[rows] - others[column], axis=1) for column in found.T], axis=1
    )
    order = np.lexsort((found, exact), axis=1)
    indices[rows] = np.take_along_axis(found, order, axis=1)
    distances[rows] = np.take_along_axis(exact, order, axis=1)
  return indices, distances
