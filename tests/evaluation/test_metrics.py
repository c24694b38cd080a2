"""Metrics against closed forms, plain loops over their definitions, and torch-fidelity."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from configs import base
from diffusion_jax.config.fields import make_plugin, plugin_names
from diffusion_jax.evaluation import nearest_neighbours
from diffusion_jax.evaluation.fid import distance, feature_stats
from diffusion_jax.evaluation.inception_score import score
from diffusion_jax.evaluation.nearest_neighbours import nearest
from diffusion_jax.evaluation.torch_fidelity import RESULTS
from diffusion_jax.evaluation.types import FeatureSet, FeatureStats, Sizes
from tests.fixtures import make_metrics_reference as recorded

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers():
  """Every test draws the same, whichever ran before it."""
  RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


FIXTURES = Path(__file__).parents[1] / 'fixtures'
SHORT = {'kid': dict(subsets=3, subset_size=20)}
STATS_ALONE = FeatureSet(None, None, None, FeatureStats(np.zeros(3), np.eye(3)))


def features(count=50, classes=4, size=3):
  logits = RNG.normal(size=(count, classes)).astype(np.float32)
  return FeatureSet(
    RNG.normal(size=(count, size)).astype(np.float32), logits, np.arange(count) % classes
  )


def metric_of(name, **changes):
  """A metric with the options of configs/base.py, and some others."""
  options = dict(base.get_config().eval.get(name, {}))
  return make_plugin('evaluation', name, **{**options, **changes})


def only(array):
  """Features alone."""
  return FeatureSet(np.asarray(array), None, None)


# Every metric.


@pytest.mark.parametrize('name', plugin_names('evaluation'))
def test_contract(name):
  metric = metric_of(name, **SHORT.get(name, {}))
  first, second = features(), features(60)
  copies = [FeatureSet(*(np.copy(x) for x in s[:3])) for s in (first, second)]
  assert all(isinstance(line, str) for line in metric.check(Sizes(50, 60, 3)))
  found = metric(first, second)
  assert found and all(type(v) is float and np.isfinite(v) for v in found.values())
  assert {key.removesuffix('_std') for key in found} == set(metric.names)
  assert metric(first, second) == found
  for given, copy in zip((first, second), copies):
    for array, before in zip(given[:3], copy[:3]):
      np.testing.assert_array_equal(array, before)
  with pytest.raises(AttributeError):
    metric.splits = 3


@pytest.mark.parametrize('name', plugin_names('evaluation'))
def test_a_reference_of_statistics_alone_gives_a_number_or_a_reason(name):
  metric = metric_of(name, **SHORT.get(name, {}))
  try:
    metric.check(Sizes(50, 0, 3))
  except ValueError as error:
    assert str(error).startswith('reference: got statistics alone, allowed images')
    assert metric(features(), STATS_ALONE) == {}
  else:
    assert set(metric.names) <= set(metric(features(), STATS_ALONE))


def test_metrics_that_need_logits_say_nothing_without_them():
  without = FeatureSet(np.zeros((4, 2)), None, np.zeros(4, int))
  for name, options in (('label_accuracy', {}), ('inception_score', {'splits': 2})):
    assert make_plugin('evaluation', name, **options)(without, without) == {}


@pytest.mark.parametrize(
  'name, options, sizes, message',
  [
    ('fid', {}, (1, 9, 3), 'num_samples: got 1, allowed >= 2'),
    ('fid', {}, (9, 1, 3), 'reference: got 1 image, allowed >= 2'),
    ('inception_score', dict(splits=10), (9, 50, 3), 'splits: got 10, allowed up to the 9 samples'),
    (
      'kid',
      dict(subset_size=30),
      (40, 29, 3),
      'subset_size: got 30, allowed up to the 29 images of the reference',
    ),
    ('kid', dict(subset_size=30), (28, 29, 3), 'up to the 28 images of the samples'),
    (
      'precision_recall',
      dict(neighbours=3),
      (3, 9, 3),
      'neighbours: got 3, allowed fewer than the 3 images of the samples',
    ),
    ('precision_recall', dict(neighbours=4), (9, 4, 3), 'the 4 images of the reference'),
  ],
)
def test_too_few_images_are_refused(name, options, sizes, message):
  metric = metric_of(name, **options)
  with pytest.raises(ValueError) as error:
    metric.check(Sizes(*sizes))
  assert message in str(error.value)
  assert metric.check(Sizes(30, 30, 3)) == []  # Just enough for all of them.


@pytest.mark.parametrize(
  'name, options',
  [
    ('inception_score', dict(splits=0)),
    ('kid', dict(subsets=0)),
    ('kid', dict(subset_size=1)),
    ('precision_recall', dict(neighbours=0)),
  ],
)
def test_impossible_options_are_refused(name, options):
  (field,) = options
  with pytest.raises(ValueError, match=f'^{field}: got {options[field]}, allowed >= '):
    metric_of(name, **options)


# Against torch-fidelity.


def agree(theirs, sizes):
  """Compares all metrics of the features that tests/fixtures/make_metrics_reference.py describes."""
  samples, reference, logits = recorded.inputs(*sizes)
  samples, reference = FeatureSet(samples, logits, None), only(reference)
  theirs = {RESULTS[name]: value for name, value in theirs.items() if name in RESULTS}
  kid = dict(subsets=recorded.SUBSETS, subset_size=recorded.SUBSET_SIZE)
  found = {
    **metric_of('fid')(samples, reference),
    **metric_of('inception_score', splits=recorded.SPLITS)(samples, reference),
    **metric_of('kid', **kid)(samples, reference),
    **metric_of('precision_recall', neighbours=recorded.NEIGHBOURS)(samples, reference),
  }
  assert set(found) == set(theirs)
  allowed = {name: 1e-6 * abs(value) for name, value in theirs.items()}
  allowed['kernel_distance'] *= 100  # Theirs are sums in float32.
  allowed['kernel_distance_std'] *= 100
  allowed['precision'], allowed['recall'] = (2 / count for count in sizes[:2])
  for name, value in found.items():
    assert abs(value - theirs[name]) <= allowed[name], name


def test_metrics_are_those_of_torch_fidelity():
  agree(json.loads((FIXTURES / 'metrics_reference.json').read_text()), recorded.SIZES)


@pytest.mark.slow
@pytest.mark.parametrize('sizes', [(2500, 2300, 512), (64, 64, 1024), (400, 900, 600)])
def test_metrics_are_those_of_torch_fidelity_at_other_sizes(sizes):
  command = [sys.executable, FIXTURES / 'make_metrics_reference.py', *map(str, sizes)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  agree(json.loads(done.stdout), sizes)


# Frechet distance.


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


# Inception Score and label accuracy.


def test_inception_score_at_its_ends():
  sure = 50.0 * np.eye(4)[np.arange(40) % 4]
  assert score(sure) == pytest.approx(4)  # Each class equally often, always certain.
  assert score(np.zeros((40, 4))) == pytest.approx(1)  # Never certain.
  assert score(50.0 * np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)  # Always the same class.


def test_inception_score_of_classes_that_never_occur():
  """Logits so far apart that probabilities are exactly 0: 0 log 0 is 0."""
  logits = np.where(np.eye(4)[np.arange(40) % 2] > 0, 2000.0, 0.0)
  assert score(logits) == pytest.approx(2)


def test_label_accuracy_counts():
  metric = make_plugin('evaluation', 'label_accuracy')
  logits = np.eye(3)[[0, 1, 2, 0]]
  found = metric(FeatureSet(logits, logits, np.array([0, 1, 1, 0])), None)
  assert found == {'label_accuracy': 0.75}


# Kernel distance.


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


# Precision and recall, and nearest neighbours.


def test_precision_and_recall_of_points_on_a_line():
  """Balls reach to the nearest other and hold what lies on their edge, as 2 on that of 1."""
  reference = [[0.0], [1.0], [10.0], [10.5]]  # Radii 1, 1, 0.5, 0.5: 0..2 and 9.5..11.
  samples = [[2.0], [8.0], [9.875], [10.25], [20.0]]  # Radii 6, 1.875, 0.375, 0.375, 9.75.
  metric = metric_of('precision_recall', neighbours=1)
  found = metric(only(samples), only(reference))
  assert found == {'precision': 3 / 5, 'recall': 4 / 4}
  found = metric(only(reference), only(samples))
  assert found == {'precision': 4 / 4, 'recall': 3 / 5}


@pytest.mark.parametrize('neighbours, max_distances', [(1, 2**26), (3, 2**26), (3, 700)])
def test_precision_and_recall_by_definition(monkeypatch, neighbours, max_distances):
  monkeypatch.setattr(nearest_neighbours, 'MAX_DISTANCES', max_distances)
  samples, reference = RNG.normal(size=(90, 6)), RNG.normal(size=(70, 6)) * 1.3 + 0.5
  radii = [np.sort(cdist(x, x), axis=1)[:, neighbours] for x in (samples, reference)]
  between = cdist(samples, reference)
  expected = {
    'precision': float((between <= radii[1]).any(axis=1).mean()),
    'recall': float((between <= radii[0][:, None]).any(axis=0).mean()),
  }
  assert 0.1 < expected['precision'] < 0.99 and 0.1 < expected['recall'] < 0.99
  found = metric_of('precision_recall', neighbours=neighbours)(only(samples), only(reference))
  assert found == expected


def test_precision_and_recall_of_a_set_against_itself_and_of_copies():
  x = 100 + RNG.normal(size=(40, 300)).astype(np.float32)
  metric = metric_of('precision_recall', neighbours=3)
  assert metric(only(x), only(x)) == {'precision': 1, 'recall': 1}
  one = np.repeat(x[:1], 40, axis=0)  # Always the same real image: its ball is a point.
  assert metric(only(one), only(x)) == {'precision': 1, 'recall': 1 / 40}


@pytest.mark.parametrize('k, max_distances', [(20, 2**26), (20, 6000), (1501, 2**26)])
def test_nearest_agrees_with_all_distances(monkeypatch, k, max_distances):
  """Also in blocks of a few rows, of all others, and for features far from zero."""
  monkeypatch.setattr(nearest_neighbours, 'MAX_DISTANCES', max_distances)
  samples, others = 1000 + RNG.normal(size=(23, 7)), 1000 + RNG.normal(size=(1501, 7))
  samples[4] = others[30]
  samples, others = samples.astype(np.float32), others.astype(np.float32)
  expected = cdist(samples, others)
  indices, distances = nearest(samples, others, k)
  assert indices.shape == distances.shape == (23, k)
  assert indices.dtype == np.int64 and distances.dtype == np.float32
  np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :k], rtol=1e-5)
  np.testing.assert_allclose(np.take_along_axis(expected, indices, 1), distances, rtol=1e-5)
  assert all(len(set(row)) == k for row in indices)
  assert indices[4, 0] == 30 and distances[4, 0] == 0


def test_blocks_bound_memory(monkeypatch):
  monkeypatch.setattr(nearest_neighbours, 'MAX_DISTANCES', 100)
  samples, others = RNG.normal(size=(23, 7)), RNG.normal(size=(31, 7))
  shapes = [squared.shape for _, squared in nearest_neighbours.blocks(samples, others)]
  assert shapes == [(3, 31)] * 7 + [(2, 31)]


def test_more_neighbours_than_there_are_is_refused():
  with pytest.raises(ValueError, match='k: got 6, allowed 1 to the 5 others'):
    nearest(np.zeros((2, 3)), np.zeros((5, 3)), 6)
