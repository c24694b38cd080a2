"""The kernel distance against its definition, a pair at a time."""

import numpy as np
import pytest

from tests.support.features import RNG, metric_of, only


def squared_mmd(x, y):
  """Binkowski et al. 2018, Eq. 4, a pair at a time."""
  kernel = lambda a, b: (a @ b / len(a) + 1) ** 3  # noqa: E731
  m, pairs = len(x), [(i, j) for i in range(len(x)) for j in range(len(x))]
  within = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs if i != j)
  return within / (m * (m - 1)) - 2 * sum(kernel(x[i], y[j]) for i, j in pairs) / m**2


def test_kernel_distance_of_one_subset_is_the_estimator():
  x, y = RNG.normal(size=(2, 12, 5))
  found = metric_of('kid', subsets=1, subset_size=12)(only(x), only(y + 0.5))
  assert found['kernel_distance'] == pytest.approx(squared_mmd(x, y + 0.5), rel=1e-5)
  assert found['kernel_distance_std'] == 0


def test_kernel_distance_has_no_bias():
  """Of one distribution it is 0 on average, within 4 standard errors of 200 subsets of new images."""
  x, y = RNG.normal(size=(2, 4000, 8))
  metric = metric_of('kid', subsets=1, subset_size=20)
  found = [
    metric(only(x[i : i + 20]), only(y[i : i + 20]))['kernel_distance'] for i in range(0, 4000, 20)
  ]
  assert min(found) < 0 and abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))
