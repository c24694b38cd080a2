"""Evaluation during training: which classes its samples are of."""

import jax
import numpy as np
import pytest

from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.sampling.previews import Previews, spread_labels


@pytest.mark.parametrize('count, num_classes', [(5, 10), (3, 10), (7, 10), (1, 10), (50, 1000)])
def test_fewer_samples_than_classes_are_spread_over_all(count, num_classes):
  """Distinct classes from the first to the last, at distances that are equal to one."""
  labels = spread_labels(np.arange(count, dtype=np.uint32), count, num_classes)
  assert labels.dtype == np.int32 and labels[0] == 0
  gaps = np.diff([*labels, num_classes])
  assert gaps.min() >= num_classes // count and gaps.max() <= -(-num_classes // count)


@pytest.mark.parametrize('count, num_classes', [(10, 10), (23, 10), (4, 1)])
def test_enough_samples_are_labelled_in_turn(count, num_classes):
  index = np.arange(count, dtype=np.uint32)
  labels = spread_labels(index, count, num_classes)
  np.testing.assert_array_equal(labels, [i % num_classes for i in range(count)])


class Recorded:
  """An evaluator that keeps the labels it is given."""

  def __init__(self):
    self.extractor = self

  def apply(self, images, labels):
    return FeatureSet(images.reshape(len(images), -1), None, labels)

  def with_known_labels(self, found):
    return found


def test_evaluation_during_training_covers_all_classes(tiny):
  """Five samples of ten classes in batches of 16 and 2: the rest of a batch counts for nothing."""
  for size in (16, 2):
    experiment = tiny(**{'sample.batch_size': size})
    weights = jax.jit(experiment.init_state)().weights()
    found = Previews(experiment).features(weights, Recorded(), 5)
    assert found.features.shape == (5, 64)
    np.testing.assert_array_equal(found.labels, [0, 2, 4, 6, 8])


@pytest.mark.parametrize('given, expected', [(2, 2), (50, 3)])
def test_a_preview_takes_its_own_number_of_steps(tiny, monkeypatch, given, expected):
  """Of train.preview_steps, but never more than the samples of the run take: 3 here."""
  asked = []
  generator = Experiment.generator
  monkeypatch.setattr(
    Experiment, 'generator', lambda self, **k: asked.append(generator(self, **k)) or asked[-1]
  )
  experiment = tiny(**{'train.preview_steps': given, 'sampler.name': 'ddpm'})
  assert Previews(experiment).picture(jax.jit(experiment.init_state)().weights()).ndim == 3
  assert [len(made.times) - 1 for made in asked] == [expected]
