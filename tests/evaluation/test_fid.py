"""The Frechet distance against closed forms and other ways to compute it."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from diffusion_jax.evaluation.fid import distance, feature_stats
from diffusion_jax.evaluation.types import FeatureSet, FeatureStats, Sizes
from tests.support.features import RNG, metric_of, only


def exact(mean, root, count):
  """(count, D) features whose mean is `mean` and whose unbiased covariance is root root^T."""
  columns = np.column_stack([np.ones(count), RNG.normal(size=(count, len(mean)))])
  white = np.linalg.qr(columns)[0][:, 1:] * np.sqrt(count - 1)  # Mean 0, covariance I.
  return mean + white @ root.T


def test_frechet_distance_of_diagonal_gaussians():
  """|mu_1 - mu_2|^2 + sum (sd_1 - sd_2)^2 where covariances commute."""
  sd_1, sd_2 = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5])
  mu_1, mu_2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, -1.0, 2.5])
  expected = np.sum((mu_1 - mu_2) ** 2) + np.sum((sd_1 - sd_2) ** 2)
  rotation = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
  cov_1, cov_2 = (rotation @ np.diag(sd**2) @ rotation.T for sd in (sd_1, sd_2))
  found = distance(rotation @ mu_1, cov_1, rotation @ mu_2, cov_2)
  assert found == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_features_of_known_statistics():
  """The same of features, more than are centred at once and wider than the squares of `mirrored`."""
  size = 150
  sd_1, sd_2 = RNG.uniform(0.1, 2, (2, size))
  mu_1, mu_2 = RNG.normal(size=(2, size)) + 3
  rotation = np.linalg.qr(RNG.normal(size=(size, size)))[0]
  samples = exact(mu_1, rotation * sd_1, 2100)
  reference = exact(mu_2, rotation * sd_2, 1000)
  expected = np.sum((mu_1 - mu_2) ** 2) + np.sum((sd_1 - sd_2) ** 2)
  found = metric_of('fid')(only(samples), only(reference))['frechet_distance']
  assert found == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_two_features():
  """For 2x2, tr(M^(1/2)) = (tr M + 2 det(M)^(1/2))^(1/2), here of M = C_1 C_2."""
  cov_1, cov_2 = np.array([[2.0, 0.6], [0.6, 0.5]]), np.array([[1.0, -0.9], [-0.9, 3.0]])
  product = cov_1 @ cov_2
  root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
  expected = 5 + np.trace(cov_1 + cov_2) - 2 * root
  found = distance(np.array([1.0, 2.0]), cov_1, np.zeros(2), cov_2)
  assert found == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_of_general_covariances_agrees_with_sqrtm():
  a, b = (RNG.normal(size=(6, 6)) for _ in range(2))
  cov_1, cov_2 = a @ a.T, b @ b.T
  expected = np.trace(cov_1 + cov_2 - 2 * sqrtm(cov_1 @ cov_2).real)
  assert distance(np.zeros(6), cov_1, np.zeros(6), cov_2) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize('counts', [(20, 20), (20, 300), (300, 20), (61, 300)])
def test_frechet_distance_of_fewer_images_than_features(counts):
  """tr((C_1^(1/2) C_2 C_1^(1/2))^(1/2)) is the sum of the singular values of X_1 X_2^T / (n - 1)."""
  x, y = RNG.normal(size=(counts[0], 60)), 2 * RNG.normal(size=(counts[1], 60)) + 1
  x_centred, y_centred = (z - z.mean(axis=0) for z in (x, y))
  roots = np.linalg.svd(x_centred @ y_centred.T, compute_uv=False)
  root = roots.sum() / np.sqrt((counts[0] - 1) * (counts[1] - 1))
  traces = np.var(x, axis=0, ddof=1).sum() + np.var(y, axis=0, ddof=1).sum()
  expected = np.square(x.mean(axis=0) - y.mean(axis=0)).sum() + traces - 2 * root
  found = distance(*feature_stats(x), *feature_stats(y))
  assert found == pytest.approx(expected, rel=1e-6)
  assert distance(*feature_stats(y), *feature_stats(x)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_ill_conditioned_covariances():
  """Variances from 1 to 1e-16 in directions that both share: sum (sd_1 - sd_2)^2."""
  sd = np.logspace(0, -8, 200)
  rotation = np.linalg.qr(RNG.normal(size=(200, 200)))[0]
  cov_1, cov_2 = ((rotation * s**2) @ rotation.T for s in (sd, 1.5 * sd))
  expected = np.square(0.5 * sd).sum()
  zero = np.zeros(200)
  assert distance(zero, cov_1, zero, cov_2) == pytest.approx(expected, rel=1e-6)
  assert distance(zero, cov_2, zero, cov_1) == pytest.approx(expected, rel=1e-6)
  assert 0 <= distance(zero, cov_1, zero, cov_1) < 1e-6


def test_frechet_distance_of_rank_one_covariances():
  """C_1 = a a^T, C_2 = b b^T: |a|^2 + |b|^2 - 2 |a . b|."""
  a, b = RNG.normal(size=(2, 30))
  expected = a @ a + b @ b - 2 * abs(a @ b)
  found = distance(np.zeros(30), np.outer(a, a), np.zeros(30), np.outer(b, b))
  assert found == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_with_features_that_never_change():
  """Each adds its difference of means and the variance that it has in the other set."""
  x, y = RNG.normal(size=(2, 500, 40))
  without = distance(*feature_stats(x[:, :37]), *feature_stats(y[:, :37]))
  x[:, 37:39], y[:, 38:] = 0.1, 0.3  # 37 in x, 38 in both, 39 in y.
  expected = without + np.square(x.mean(axis=0) - y.mean(axis=0))[37:].sum()
  expected += np.var(y[:, 37], ddof=1) + np.var(x[:, 39], ddof=1)
  assert distance(*feature_stats(x), *feature_stats(y)) == pytest.approx(expected, rel=1e-6)
  zeros = np.zeros((9, 40))
  assert distance(*feature_stats(zeros), *feature_stats(zeros + 1)) == pytest.approx(40)
  assert distance(*feature_stats(zeros), *feature_stats(zeros)) == 0


def test_frechet_distance_of_singular_covariances():
  """Fewer examples than dimensions; to itself 0, never negative or NaN."""
  few = RNG.normal(size=(5, 40))
  few[:, 7] = 1.0
  mean, cov = feature_stats(few)
  assert distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
  assert distance(mean, cov, mean + 1, cov) == pytest.approx(40, rel=1e-6)


def test_covariance_is_that_of_numpy():
  """Of float32 features far from zero, in float64; symmetric to the bit."""
  x = (1000 + RNG.normal(size=(2500, 140))).astype(np.float32)
  mean, covariance = feature_stats(x)
  np.testing.assert_array_equal(mean, np.mean(x, axis=0))  # In float32, as torch-fidelity's.
  np.testing.assert_allclose(covariance, np.cov(x, rowvar=False, dtype=np.float64), atol=1e-13)
  np.testing.assert_array_equal(covariance, covariance.T)
  assert mean.dtype == covariance.dtype == np.float64
  assert feature_stats(x[:, :1]).covariance.shape == (1, 1)


def test_given_statistics_hold_instead_of_features():
  samples = only(exact(np.ones(3), np.eye(3), 20))
  given = FeatureStats(np.zeros(3), 4 * np.eye(3))
  for reference in (FeatureSet(None, None, None, given), samples._replace(stats=given)):
    found = metric_of('fid')(samples, reference)['frechet_distance']
    assert found == pytest.approx(3 + 3 * (2 - 1) ** 2)


def test_frechet_distance_of_few_images_comes_with_a_warning():
  metric = metric_of('fid')
  (warning,) = metric.check(Sizes(500, 2048, 2048))
  assert 'the covariance of 500 samples has rank 499 of 2,048' in warning and 'biased' in warning
  (warning,) = metric.check(Sizes(2048, 500, 2048))
  assert 'the covariance of 500 reference images has rank 499' in warning
  assert len(metric.check(Sizes(500, 500, 2048))) == 2
  assert len(metric.check(Sizes(500, 0, 2048))) == 1
  assert metric.check(Sizes(5000, 0, 2048)) == metric.check(Sizes(2048, 2048, 2048)) == []
