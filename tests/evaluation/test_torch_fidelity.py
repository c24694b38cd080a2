"""The reference as a backend: what it is asked, what it answers, and how it fails."""

import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.config.options import options_of
from diffusion_jax.config.plugins import load_plugin, make_plugin, plugin_names
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation import torch_fidelity
from tests.fixtures.inception_weights import crops, weight

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'inception.npz'
OPTIONS = {
  'fid': {},
  'inception_score': dict(splits=3),
  'kid': dict(subsets=4, subset_size=6),
  'precision_recall': dict(neighbours=2),
}
IMAGES = np.zeros((2, 8, 8, 3), np.uint8)


def test_metrics_are_asked_for_by_their_names():
  assert torch_fidelity.arguments(OPTIONS) == {
    'fid': True,
    'isc': True,
    'isc_splits': 3,
    'kid': True,
    'kid_subsets': 4,
    'kid_subset_size': 6,
    'prc': True,
    'prc_neighborhood': 2,
  }
  assert torch_fidelity.arguments({'fid': {}}) == {'fid': True}


@pytest.mark.parametrize('name', torch_fidelity.SUPPORTED)
def test_metrics_and_options_are_those_of_the_plugins(name):
  assert name in plugin_names('evaluation') and OPTIONS.keys() == set(torch_fidelity.SUPPORTED)
  plugin = load_plugin('evaluation', name)
  assert options_of(plugin).keys() == set(torch_fidelity.METRICS[name][1])
  assert set(plugin(**OPTIONS[name]).names) <= set(torch_fidelity.RESULTS.values())


def test_other_metrics_are_refused():
  with pytest.raises(InputError, match=r'got label_accuracy, allowed .*fid, inception_score, kid'):
    torch_fidelity.measure(IMAGES, IMAGES, {}, {'fid': {}, 'label_accuracy': {}}, batch_size=2)


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(torch_fidelity.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install torch-fidelity'):
    torch_fidelity.measure(IMAGES, IMAGES, {}, OPTIONS, batch_size=2)


def test_the_last_line_of_a_process_that_fails_is_told(monkeypatch, tmp_path):
  program = tmp_path / 'python'
  program.write_text('#!/bin/sh\necho Traceback >&2\necho "RuntimeError: no memory" >&2\nexit 7\n')
  program.chmod(0o755)
  monkeypatch.setattr(sys, 'executable', str(program))
  with pytest.raises(InputError, match=r'stopped with exit code 7: RuntimeError: no memory$'):
    torch_fidelity.measure(IMAGES, IMAGES, {}, OPTIONS, batch_size=2)
  program.write_text('#!/bin/sh\nkill -9 $$\n')
  with pytest.raises(InputError, match=r'stopped with exit code -9: it said nothing$'):
    torch_fidelity.measure(IMAGES, IMAGES, {}, OPTIONS, batch_size=2)


@pytest.fixture(scope='module')
def recorded():
  """torch-fidelity's features and logits of some photographs, and the shapes of its weights."""
  with np.load(FIXTURE) as file:
    return dict(file)


@pytest.fixture(scope='module')
def weights(recorded):
  """torch-fidelity's names -> weights, without the counters of the batch norms."""
  shapes = {line.split()[0]: tuple(map(int, line.split()[1:])) for line in recorded['shapes']}
  return {name: weight(name, shape) for name, shape in shapes.items() if shape}


@pytest.mark.slow
def test_numbers_are_those_of_our_metrics_of_its_features(recorded, weights, tmp_path):
  """Its features of the recorded photographs are the recorded ones, which another process took."""
  np.save(tmp_path / 'samples.npy', crops(10, 32))
  samples, reference = tmp_path / 'samples.npy', crops(9, 64)
  found = torch_fidelity.measure(
    samples, reference, weights, OPTIONS, batch_size=4, with_features=True
  )
  for given, side in ((found.samples, 32), (found.reference, 64)):
    for array, name in ((given.features, 'features'), (given.logits, 'logits')):
      wanted = recorded[f'{name}{side}']
      assert np.linalg.norm(array[: len(wanted)] - wanted) < 1e-5 * np.linalg.norm(wanted)
  assert found.samples.features.shape == (10, 2048) and found.reference.logits.shape == (9, 1008)
  ours = {}
  for name, options in OPTIONS.items():
    ours |= make_plugin('evaluation', name, **options)(found.samples, found.reference)
  assert ours.keys() == found.metrics.keys()
  for name, value in ours.items():
    assert value == pytest.approx(found.metrics[name], rel=1e-4), name


@pytest.mark.full
def test_gray_images_are_repeated_and_one_metric_is_enough(weights):
  gray = crops(4, 32)[..., :1]
  rgb = np.repeat(gray, 3, axis=-1)
  found = torch_fidelity.measure(gray, rgb, weights, {'fid': {}}, batch_size=3, with_features=True)
  np.testing.assert_array_equal(found.samples.features, found.reference.features)
  assert found.samples.logits is None and found.metrics.keys() == {'frechet_distance'}
  spread = np.var(found.samples.features, axis=0).sum()
  assert abs(found.metrics['frechet_distance']) < 1e-3 * spread


@pytest.mark.slow
def test_weights_that_do_not_fit_are_told(weights):
  cut = {name: array for name, array in weights.items() if name != 'fc.weight'}
  with pytest.raises(InputError, match=r'stopped with exit code 1: .*fc.weight'):
    torch_fidelity.measure(IMAGES, IMAGES, cut, {'fid': {}}, batch_size=2)
