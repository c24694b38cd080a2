"""Feature networks: their contract, the classifier's cache, and features that are kept."""

import errno

import jax
import numpy as np
import pytest

from configs import base
from diffusion_jax.config.plugins import make_plugin, plugin_names
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.evaluation import classifier_training, extract
from diffusion_jax.evaluation.classifier_training import affordable, shifted
from diffusion_jax.evaluation.extract import Extractor, num_features
from diffusion_jax.evaluation.features import dataset_classifier
from diffusion_jax.evaluation.types import Context, FeatureSet
from diffusion_jax.runtime.mesh import make_mesh
from tests.support.sources import digits

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
    return make_plugin('evaluation.features', name, context=context, **options)

  return built


def extractor(network, batch_size=4):
  return Extractor(network, make_mesh(-1, 1, 1), batch_size)


@pytest.mark.parametrize('name', plugin_names('evaluation.features'))
def test_contract(data, build, name, tmp_path, monkeypatch):
  if name == 'inception':  # Against torch-fidelity in tests/pretrained; here without its weights.
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('diffusion_jax.pretrained.inception.URL', 'http://127.0.0.1:9/nothing.pth')
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


@pytest.fixture
def kept(data, tmp_path):
  """Features of six images as they were computed, and the file that keeps them."""
  source = Arrays(data['holdout'].read(np.arange(6))['image'], 'a')
  found = extractor(Counting())(source, np.arange(6), tmp_path)
  (path,) = tmp_path.iterdir()
  return source, found, path


def rewritten(path, **changes):
  with np.load(path) as file:
    content = {**file, **changes}
  np.savez(path, **{name: x for name, x in content.items() if x is not None})


DAMAGE = {
  'empty': lambda path: path.write_bytes(b''),
  'one byte': lambda path: path.write_bytes(path.read_bytes()[:-1]),
  'text': lambda path: path.write_text('not an archive'),
  'short': lambda path: rewritten(path, features=np.ones((4, 2), np.float32)),
  'labels short': lambda path: rewritten(path, labels=np.zeros(4, np.int32)),
  'other values': lambda path: rewritten(path, features=np.ones((6, 2), np.float32)),
  'NaN': lambda path: rewritten(path, features=np.full((6, 2), np.nan, np.float32)),
  'NaN with its digest': lambda path: extract._write(
    path, FeatureSet(np.full((6, 2), np.nan, np.float32), None, np.zeros(6, np.int32))
  ),
  'short with its digest': lambda path: extract._write(
    path, FeatureSet(np.ones((4, 2), np.float32), None, np.zeros(4, np.int32))
  ),
  'no digest': lambda path: rewritten(path, digest=None),
  'no features': lambda path: rewritten(path, features=None),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_kept_features_that_are_not_whole_are_named_and_computed_again(kept, damage, capsys):
  source, expected, path = kept
  DAMAGE[damage](path)
  for read_again in (False, True):
    network = Counting()
    found = extractor(network)(source, np.arange(6), path.parent)
    assert (network.traces == 0) == read_again
    assert (str(path) in capsys.readouterr().out) != read_again
    np.testing.assert_array_equal(found.features, expected.features)
    np.testing.assert_array_equal(found.logits, expected.logits)
    np.testing.assert_array_equal(found.labels, expected.labels)
  assert list(path.parent.iterdir()) == [path]


class Broken(Counting):
  def apply(self, params, images):
    features, logits = super().apply(params, images)
    return features * np.nan, logits


def test_features_that_are_not_finite_are_an_error(data, tmp_path):
  with pytest.raises(DamagedError, match='counting'):
    extractor(Broken())(data['holdout'], np.arange(6), tmp_path)
  assert not list(tmp_path.iterdir())


class Interrupted(Arrays):
  """Interrupted once after three readings, as by Ctrl-C; counts what is read."""

  def read(self, indices):
    counts = self.__dict__.setdefault('counts', [])
    if len(counts) == 3 and not self.__dict__.get('goes_on'):
      self.__dict__['goes_on'] = True
      raise KeyboardInterrupt('SIGINT')
    counts.append(len(indices))
    return super().read(indices)


def test_an_interruption_keeps_the_features_that_are_done(data, tmp_path):
  image = data['holdout'].read(np.arange(11))['image']
  expected = extractor(Counting(), 2)(Arrays(image, 'a'), np.arange(11))
  source = Interrupted(image, 'a')
  with pytest.raises(KeyboardInterrupt):
    extractor(Counting(), 2)(source, np.arange(11), tmp_path)
  found = extractor(Counting(), 2)(source, np.arange(11), tmp_path)
  assert len(source.counts) == 6  # Eleven images in pairs, none of them twice.
  np.testing.assert_array_equal(found.features, expected.features)
  np.testing.assert_array_equal(found.labels, expected.labels)
  (path,) = tmp_path.iterdir()
  assert '.part' not in path.name


def test_a_full_disk_is_an_error_that_names_the_file(data, tmp_path, monkeypatch):
  def cut_short(stream, **arrays):
    stream.write(b'some')
    raise OSError('4096 requested and 12 written')  # As NumPy says it, without a number.

  monkeypatch.setattr(np, 'savez', cut_short)
  with pytest.raises(OSError) as caught:
    extractor(Counting())(data['holdout'], np.arange(6), tmp_path)
  assert caught.value.errno == errno.ENOSPC and caught.value.filename.endswith('.npz')
  assert not list(tmp_path.iterdir())


def test_classifier_is_trained_once_and_kept(build, tmp_path, capsys):
  first = build('dataset_classifier', tmp_path)
  assert 'training' in capsys.readouterr().err
  second = build('dataset_classifier', tmp_path)
  assert 'training' not in capsys.readouterr().err
  assert second.digest == first.digest and second.notes == first.notes
  assert len(list((tmp_path / 'features').iterdir())) == 1
  build('dataset_classifier', tmp_path, seed=1)
  assert len(list((tmp_path / 'features').iterdir())) == 2


class Reads:
  """A source that is interrupted at its n-th reading, as by Ctrl-C, and counts them."""

  def __init__(self, source, stop=None):
    self.source, self.stop, self.count = source, stop, 0

  def __getattr__(self, name):
    return getattr(self.source, name)

  def read(self, indices):
    self.count += 1
    if self.count == self.stop:
      raise KeyboardInterrupt('SIGINT')
    return self.source.read(indices)


def classifier(train, holdout, folder, **changes):
  options = {**base.get_config().eval.features.dataset_classifier, **SHORT['dataset_classifier']}
  sources = {'train': train, 'holdout': holdout}
  context = Context(sources.get, folder, '', False)
  return make_plugin(
    'evaluation.features', 'dataset_classifier', context=context, **{**options, **changes}
  )


def test_an_interrupted_classifier_is_gone_on_with(data, tmp_path):
  whole = classifier(data['train'], data['holdout'], tmp_path / 'whole')
  first, again = Reads(data['train'], stop=22), Reads(data['train'])
  with pytest.raises(KeyboardInterrupt):
    classifier(first, data['holdout'], tmp_path / 'parts')
  found = classifier(again, data['holdout'], tmp_path / 'parts')
  assert found.digest == whole.digest and found.notes == whole.notes
  # One reading for the shape and the time; 20 steps; the other 10.
  assert again.count == 1 + 30 - (22 - 1 - 1)
  (path,) = (tmp_path / 'parts' / 'features').iterdir()
  assert path.suffix == '.safetensors'


def test_damaged_progress_is_named_and_trained_again(data, tmp_path, capsys):
  whole = classifier(data['train'], data['holdout'], tmp_path / 'whole')
  with pytest.raises(KeyboardInterrupt):
    classifier(Reads(data['train'], stop=22), data['holdout'], tmp_path / 'parts')
  (path,) = (tmp_path / 'parts' / 'features').iterdir()
  path.write_bytes(path.read_bytes()[:-3])
  assert classifier(data['train'], data['holdout'], tmp_path / 'parts').digest == whole.digest
  assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize('seconds, expected', [(1000.0, 600), (40.0, 80), (1.0, 50)])
def test_steps_are_as_many_as_fit(monkeypatch, seconds, expected):
  """A step of half a second by the clock; compiling does not count."""
  clock = iter([100.0, 100.0 + 0.5 * classifier_training.TIMED_STEPS])
  monkeypatch.setattr(classifier_training.time, 'perf_counter', lambda: next(clock))
  state = classifier_training.Progress(0, 600, {}, {})
  batch = {'image': np.zeros(1), 'label': np.zeros(1)}
  assert affordable(lambda *arguments: np.zeros(1), state, batch, seconds) == expected


def test_a_reduced_budget_is_told_and_kept(data, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(classifier_training, 'affordable', lambda *arguments: 7)
  found = classifier(data['train'], data['holdout'], tmp_path)
  assert found.notes['num_steps'] == 7 and '7 of 30 steps' in capsys.readouterr().out


@pytest.mark.parametrize(
  'num_classes, accuracy, warns',
  [
    (10, 0.19, 1),
    (10, 0.2, 0),
    (2, 0.74, 1),
    (2, 0.76, 0),
    (100, 0.019, 1),
    (100, 0.03, 0),
    (1, 1, 1),
  ],
)
def test_a_classifier_near_chance_warns(num_classes, accuracy, warns):
  assert len(dataset_classifier.near_chance(accuracy, num_classes)) == warns


@pytest.mark.parametrize(
  'side, inner', [(8, 8), (32, 32), (33, 17), (47, 24), (64, 16), (128, 16), (100, 17)]
)
def test_large_images_are_reduced_by_the_first_convolution(side, inner):
  """So that a step costs about the same at all sizes; every pixel counts."""
  assert -(-side // dataset_classifier.first_stride(side)) == inner
  module = dataset_classifier.CNN((4, 4), 4, 3)
  shapes = jax.eval_shape(
    lambda x: module.init(jax.random.key(0), x)['params'], np.zeros((1, side, side, 3), np.uint8)
  )
  width, stride = shapes['Conv_0']['kernel'].shape[0], dataset_classifier.first_stride(side)
  assert width >= stride and (stride > 1 or width == 3)


def test_a_damaged_cache_is_made_again(build, tmp_path):
  first = build('dataset_classifier', tmp_path)
  (path,) = (tmp_path / 'features').iterdir()
  content = bytearray(path.read_bytes())
  content[-100] ^= 1
  path.write_bytes(content)
  assert build('dataset_classifier', tmp_path).digest == first.digest
  path.write_bytes(content[:-500])
  assert build('dataset_classifier', tmp_path).digest == first.digest


@pytest.mark.slow
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
