"""The digits are scikit-learn's, unchanged but for the scale."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from configs import base
from diffusion_jax.experiment.fields import load_plugin, plugin_names

SPLITS = ('train', 'holdout')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize('name', plugin_names('data'))
def test_contract(name, split):
  options = base.get_config().data[name].to_dict()
  build = load_plugin('data', name).build
  source = build(split=split, **options)
  batch = source.read(np.asarray([3, 0, 3]))
  for key, item in source.element.items():
    assert batch[key].shape == (3, *item.shape) and batch[key].dtype == item.dtype
    np.testing.assert_array_equal(batch[key][0], batch[key][2])
  labels = source.read(np.arange(source.num_examples))['label']
  assert labels.min() == 0 and labels.max() == len(source.label_names) - 1
  assert build(split=split, **options).fingerprint == source.fingerprint


def test_the_two_splits_are_the_stated_ones():
  build = load_plugin('data', 'digits').build
  train, holdout = (build(split=s, holdout_size=297, split_seed=0) for s in SPLITS)
  pixels, labels = load_digits(return_X_y=True)
  x, x_held, y, y_held = train_test_split(
    pixels, labels, test_size=297, stratify=labels, random_state=0
  )
  for source, pixels, labels in ((train, x, y), (holdout, x_held, y_held)):
    np.testing.assert_array_equal(source.images.reshape(-1, 64), np.round(pixels * 255 / 16))
    np.testing.assert_array_equal(source.labels, labels)
  assert (train.num_examples, holdout.num_examples) == (1500, 297)
  assert train.fingerprint != holdout.fingerprint
