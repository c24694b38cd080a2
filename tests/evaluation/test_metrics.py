"""What every metric keeps to, and that they agree with torch-fidelity."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.config.plugins import make_plugin, plugin_names
from diffusion_jax.evaluation.torch_fidelity import RESULTS
from diffusion_jax.evaluation.types import FeatureSet, FeatureStats, Sizes
from tests.fixtures import make_metrics_reference as recorded
from tests.support.features import RNG, metric_of, only

FIXTURES = Path(__file__).parents[1] / 'fixtures'
SHORT = {'kid': dict(subsets=3, subset_size=20)}
STATS_ALONE = FeatureSet(None, None, None, FeatureStats(np.zeros(3), np.eye(3)))


def features(count=50, classes=4, size=3):
  logits = RNG.normal(size=(count, classes)).astype(np.float32)
  return FeatureSet(
    RNG.normal(size=(count, size)).astype(np.float32), logits, np.arange(count) % classes
  )


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


def test_label_accuracy_counts():
  metric = make_plugin('evaluation', 'label_accuracy')
  logits = np.eye(3)[[0, 1, 2, 0]]
  found = metric(FeatureSet(logits, logits, np.array([0, 1, 1, 0])), None)
  assert found == {'label_accuracy': 0.75}


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
@pytest.mark.parametrize(
  'sizes',
  [
    (2500, 2300, 512),
    *(pytest.param(s, marks=pytest.mark.full) for s in ((64, 64, 1024), (400, 900, 600))),
  ],
)
def test_metrics_are_those_of_torch_fidelity_at_other_sizes(sizes):
  command = [sys.executable, FIXTURES / 'make_metrics_reference.py', *map(str, sizes)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  agree(json.loads(done.stdout), sizes)
