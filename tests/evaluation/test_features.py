"""Feature networks: their contract, the classifier's cache, and features that are kept."""

import numpy as np
import pytest

from configs import base
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.extract import Extractor, num_features
from diffusion_jax.evaluation.features.dataset_classifier import shifted
from diffusion_jax.evaluation.types import Context
from diffusion_jax.experiment.fields import load_plugin, plugin_names
from diffusion_jax.runtime.mesh import make_mesh
from tests.data.sources import digits

SHORT = {'dataset_classifier': dict(num_steps=30, channels=(8, 16))}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """The prepared digits: split -> source."""
  return digits(tmp_path_factory.mktemp('digits'))


@pytest.fixture
def build(data):
  """build(name, cache_dir, **options) -> feature network of the digits."""

  def built(name, cache_dir, **changes):
    options = {**base.get_config().eval.features.get(name, {}), **SHORT.get(name, {}), **changes}
    context = Context(data.get, cache_dir, '', False)
    return load_plugin('evaluation.features', name).build(context=context, **options)

  return built


def extractor(network, batch_size=4):
  return Extractor(network, make_mesh(-1, 1, 1), batch_size)


@pytest.mark.parametrize('name', plugin_names('evaluation.features'))
def test_contract(data, build, name, tmp_path, monkeypatch):
  if name == 'inception':  # Against torch-fidelity in tests/interop; here without its weights.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('diffusion_jax.interop.inception.URL', 'http://127.0.0.1:9/nothing.pth')
    with pytest.raises(InputError, match='dataset_classifier'):
      build(name, tmp_path)
    return
  network = build(name, tmp_path)
  found = extractor(network)(data['holdout'], np.arange(7))
  assert network.name == name and network.digest and network.resize
  assert network.knows_labels == (name == 'dataset_classifier')
  assert found.features.shape == (7, num_features(network, (8, 8, 1)))
  assert found.features.dtype == np.float32
  np.testing.assert_array_equal(found.labels, data['holdout'].read(np.arange(7))['label'])
  alone = extractor(network, batch_size=1)(data['holdout'], np.array([2]))
  np.testing.assert_allclose(alone.features[0], found.features[2], atol=1e-5)


class Counting:
  """A network that counts how often it is traced: its features are means and maxima."""

  name, digest, resize, notes, params = 'counting', 'v1', 'none', {}, {}

  def __init__(self):
    self.traces = 0

  def apply(self, params, images):
    self.traces += 1
    x = images.reshape(len(images), -1).astype(np.float32)
    return np.stack([0, 1]) + x[:, :2] + x.mean(axis=1, keepdims=True), x[:, :3]


def test_features_are_those_of_the_asked_images_in_their_order(data):
  indices = np.array([5, 0, 11, 5, 3])
  batch = data['train'].read(indices)
  x = batch['image'].reshape(5, -1).astype(np.float32)
  found = extractor(Counting(), batch_size=2)(data['train'], indices)
  expected = x[:, :2] + x.mean(axis=1, keepdims=True) + [0, 1]
  np.testing.assert_allclose(found.features, expected, rtol=1e-6)
  np.testing.assert_array_equal(found.logits, x[:, :3])
  np.testing.assert_array_equal(found.labels, batch['label'])


def test_one_compilation_for_all_sets(data):
  network = Counting()
  one = extractor(network)
  for count in (4, 10, 13):
    one(data['train'], np.arange(count))
  before = network.traces
  one(data['holdout'], np.arange(9))
  assert network.traces == before


def test_features_are_kept_by_content(data, tmp_path):
  image = data['holdout'].read(np.arange(6))['image']
  first = extractor(Counting())(Arrays(image, 'a'), np.arange(6), tmp_path)
  other = extractor(Counting())
  again = other(Arrays(np.zeros_like(image), 'a'), np.arange(6), tmp_path)  # By its fingerprint.
  np.testing.assert_array_equal(again.features, first.features)
  assert other.network.traces == 0
  for changed in (Arrays(image, 'b'), Arrays(image, 'a')):
    count = 6 if changed.fingerprint == 'b' else 5
    other(changed, np.arange(count), tmp_path)
  assert len(list(tmp_path.iterdir())) == 3
  (path, *_) = tmp_path.iterdir()
  for path in tmp_path.iterdir():
    path.write_bytes(path.read_bytes()[:-50])
  mended = other(Arrays(image, 'a'), np.arange(6), tmp_path)  # Damaged: made again.
  np.testing.assert_array_equal(mended.features, first.features)


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
