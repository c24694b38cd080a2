"""Metrics against closed forms."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from configs import base
from diffusion_jax.evaluation.fid import distance, moments
from diffusion_jax.evaluation.inception_score import score
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.fields import load_plugin, plugin_names

RNG = np.random.default_rng(0)


def features(count=50, classes=4, size=3):
  logits = RNG.normal(size=(count, classes)).astype(np.float32)
  return FeatureSet(
    RNG.normal(size=(count, size)).astype(np.float32), logits, np.arange(count) % classes
  )


@pytest.mark.parametrize('name', plugin_names('evaluation'))
def test_contract(name):
  metric = load_plugin('evaluation', name).build(**base.get_config().eval[name].to_dict())
  first, second = features(), features()
  found = metric(first, second)
  assert found and all(type(v) is float and np.isfinite(v) for v in found.values())
  assert metric(first, second) == found


def test_frechet_distance_of_diagonal_gaussians():
  """|mu_1 - mu_2|^2 + sum (sd_1 - sd_2)^2 where covariances commute."""
  sd_1, sd_2 = np.array([1.0, 2.0, 0.5]), np.array([3.0, 0.1, 0.5])
  mu_1, mu_2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, -1.0, 2.5])
  expected = np.sum((mu_1 - mu_2) ** 2) + np.sum((sd_1 - sd_2) ** 2)
  rotation = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
  cov_1, cov_2 = (rotation @ np.diag(sd**2) @ rotation.T for sd in (sd_1, sd_2))
  found = distance(rotation @ mu_1, cov_1, rotation @ mu_2, cov_2)
  assert found == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_general_covariances_agrees_with_sqrtm():
  a, b = (RNG.normal(size=(6, 6)) for _ in range(2))
  cov_1, cov_2 = a @ a.T, b @ b.T
  expected = np.trace(cov_1 + cov_2 - 2 * sqrtm(cov_1 @ cov_2).real)
  assert distance(np.zeros(6), cov_1, np.zeros(6), cov_2) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_singular_covariances():
  """Fewer examples than dimensions; to itself 0, never negative or NaN."""
  few = RNG.normal(size=(5, 40))
  few[:, 7] = 1.0
  mean, cov = moments(few)
  assert distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-6)
  assert distance(mean, cov, mean + 1, cov) == pytest.approx(40, rel=1e-6)


def test_inception_score_at_its_ends():
  sure = 50.0 * np.eye(4)[np.arange(40) % 4]
  assert score(sure) == pytest.approx(4)  # Each class equally often, always certain.
  assert score(np.zeros((40, 4))) == pytest.approx(1)  # Never certain.
  assert score(50.0 * np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)  # Always the same class.


def test_label_accuracy_counts():
  metric = load_plugin('evaluation', 'label_accuracy').build()
  logits = np.eye(3)[[0, 1, 2, 0]]
  found = metric(FeatureSet(logits, logits, np.array([0, 1, 1, 0])), None)
  assert found == {'label_accuracy': 0.75}


def test_metrics_that_need_logits_say_nothing_without_them():
  without = FeatureSet(np.zeros((4, 2)), None, np.zeros(4, int))
  for name, options in (('label_accuracy', {}), ('inception_score', {'splits': 2})):
    assert load_plugin('evaluation', name).build(**options)(without, without) == {}
