"""Precision, recall and nearest neighbours against their definitions."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from diffusion_jax.evaluation import nearest_neighbours
from diffusion_jax.evaluation.nearest_neighbours import nearest
from tests.support.features import RNG, metric_of, only


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
