"""Feature networks: their contract, and the classifier's cache."""

import numpy as np
import pytest

from configs import base
from diffusion_jax.evaluation.features.dataset_classifier import shifted
from diffusion_jax.experiment.fields import load_plugin, plugin_names
from tests.data.sources import digits

SHORT = {'dataset_classifier': dict(num_steps=30, channels=(8, 16)), 'pixels': {}}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The prepared digits: split -> source."""
  return digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture
def build(data):
  """build(name, cache_dir, **options) -> feature network of the digits."""

  def built(name, cache_dir, **changes):
    options = {**base.get_config().eval.features[name].to_dict(), **SHORT[name], **changes}
    return load_plugin('evaluation.features', name).build(**data, cache_dir=cache_dir, **options)

  return built


@pytest.mark.parametrize('name', plugin_names('evaluation.features'))
def test_contract(data, build, name, tmp_path):
  network = build(name, tmp_path)
  batch = data['holdout'].read(np.arange(7))
  found = network.extract(batch['image'], batch['label'])
  assert network.name == name and network.digest
  assert found.features.ndim == 2 and len(found.features) == 7
  assert found.features.dtype == np.float32
  np.testing.assert_array_equal(found.labels, batch['label'])
  alone = network.extract(batch['image'][2:3], batch['label'][2:3])
  np.testing.assert_allclose(alone.features[0], found.features[2], atol=1e-5)


def test_classifier_is_trained_once_and_kept(build, tmp_path, capsys):
  first = build('dataset_classifier', tmp_path)
  assert 'training' in capsys.readouterr().err
  second = build('dataset_classifier', tmp_path)
  assert 'training' not in capsys.readouterr().err
  assert second.digest == first.digest and second.notes == first.notes
  assert len(list((tmp_path / 'features').iterdir())) == 1
  build('dataset_classifier', tmp_path, seed=1)
  assert len(list((tmp_path / 'features').iterdir())) == 2


def test_a_damaged_cache_is_made_again(build, tmp_path):
  first = build('dataset_classifier', tmp_path)
  (path,) = (tmp_path / 'features').iterdir()
  content = bytearray(path.read_bytes())
  content[-100] ^= 1
  path.write_bytes(content)
  assert build('dataset_classifier', tmp_path).digest == first.digest
  path.write_bytes(content[:-500])
  assert build('dataset_classifier', tmp_path).digest == first.digest


def test_classifier_learns_digits(build, tmp_path):
  """Default settings: at least as good as the SVC of scikit-learn's own example, about 98%."""
  network = build('dataset_classifier', tmp_path, num_steps=600, channels=(32, 64))
  assert network.notes['holdout_accuracy'] > 0.97


def test_shifted_repeats_the_edge():
  image = np.arange(9).reshape(1, 3, 3, 1)
  np.testing.assert_array_equal(
    shifted(image, (1, 0))[0, :, :, 0], [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
  )
  np.testing.assert_array_equal(shifted(image, (0, 0)), image)
