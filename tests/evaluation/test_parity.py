"""torch-fidelity and ours, live, on the same photographs and the same random weights."""

import numpy as np
import pytest

from diffusion_jax.config.plugins import make_plugin
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.evaluation import torch_fidelity
from diffusion_jax.evaluation.extract import Extractor
from diffusion_jax.evaluation.features.inception import apply
from diffusion_jax.evaluation.types import FeatureNetwork
from diffusion_jax.pretrained import inception
from diffusion_jax.runtime.mesh import make_mesh
from tests.fixtures.inception_weights import crops, state

COUNT = 64
METRICS = {
  'fid': {},
  'inception_score': {'splits': 10},
  'kid': {'subsets': 20, 'subset_size': 32},
  'precision_recall': {'neighbours': 3},
}


@pytest.mark.slow
@pytest.mark.parametrize(
  'side', [*(pytest.param(n, marks=pytest.mark.full) for n in (32, 64)), 128]
)
def test_features_and_metrics_are_those_of_torch_fidelity(side):
  images = crops(COUNT, side), crops(COUNT, side, seed=1)
  theirs = torch_fidelity.measure(*images, state(), METRICS, batch_size=8, with_features=True)
  network = FeatureNetwork('inception', 'random', apply, inception.fold(state(), 'random weights'))
  extractor = Extractor(network, make_mesh(-1, 1, 1), 8)
  samples, reference = (extractor(Arrays(x, ''), np.arange(COUNT)) for x in images)
  for found, wanted in ((samples, theirs.samples), (reference, theirs.reference)):
    for ours, expected in ((found.features, wanted.features), (found.logits, wanted.logits)):
      assert np.linalg.norm(ours - expected) < 1e-4 * np.linalg.norm(expected)
      errors = np.linalg.norm(ours - expected, axis=1) / np.linalg.norm(expected, axis=1)
      assert errors.max() < 1e-4
  measured = {}
  for name, options in METRICS.items():
    measured |= make_plugin('evaluation', name, **options)(samples, reference)
  for name in ('precision', 'recall'):
    assert abs(measured.pop(name) - theirs.metrics.pop(name)) <= 2 / COUNT
  assert set(theirs.metrics) == set(measured)
  print(side, measured, theirs.metrics)
  assert measured == pytest.approx(theirs.metrics, rel=1e-3)
