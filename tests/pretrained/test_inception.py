"""The FID network against torch-fidelity's, and its weights: found, verified, converted, refused."""

import hashlib
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.models.inception import InceptionV3, max_pool, mean_pool, resize
from diffusion_jax.pretrained import inception
from tests.fixtures import inception_weights
from tests.fixtures.inception_weights import crops

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'inception.npz'


@pytest.fixture(scope='module')
def recorded():
  with np.load(FIXTURE) as file:
    return dict(file)


@pytest.fixture(scope='module')
def state():
  return inception_weights.state()


@pytest.fixture(scope='module')
def network(state):
  """images -> features, logits."""
  params = inception.fold(state, 'the fixture')
  apply = jax.jit(lambda params, images: InceptionV3().apply({'params': params}, images))
  return lambda images: jax.device_get(apply(params, images))


@pytest.mark.parametrize('side', [32, 64, 128])
def test_features_are_those_of_torch_fidelity(recorded, network, side):
  expected = recorded[f'features{side}'], recorded[f'logits{side}']
  for found, wanted in zip(network(crops(3, side)), expected):
    assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)
    spread = wanted.std(axis=0).mean()  # What tells images apart; an error must be small beside it.
    assert np.abs(found - wanted).max() < 5e-3 * spread and spread > 0.05 * np.abs(wanted).mean()


def test_gray_images_are_repeated(network):
  gray = crops(1, 32)[..., :1]
  features = [network(np.repeat(gray, 3, axis=-1))[0], network(gray)[0]]
  np.testing.assert_array_equal(*features)


def test_resize_reads_pixel_i_at_i_n_over_299():
  """A ramp stays one, so its values are the positions; above the last pixel it is flat."""
  ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[None, :, None, None], (1, 64, 64, 1))
  expected = np.minimum(np.arange(299) * 64 / 299, 63)
  found = np.asarray(resize(ramp))
  np.testing.assert_allclose(found[0, :, 5, 0], expected, atol=1e-5)
  np.testing.assert_array_equal(found[0, :, 0, 0], found[0, :, 298, 0])
  np.testing.assert_allclose(resize(ramp.swapaxes(1, 2))[0, 5, :, 0], expected, atol=1e-5)
  same = np.random.default_rng(0).random((1, 299, 299, 1), np.float32)
  np.testing.assert_array_equal(resize(same), same)


def test_mean_pool_leaves_the_padding_out():
  np.testing.assert_allclose(mean_pool(np.ones((1, 5, 5, 2), np.float32)), 1, atol=1e-6)
  rows = np.arange(5, dtype=np.float32)[None, :, None, None]
  found = mean_pool(np.broadcast_to(rows, (1, 5, 5, 1)))
  np.testing.assert_allclose(found[0, :, 0, 0], [0.5, 1, 2, 3, 3.5], atol=1e-6)


def test_max_pool():
  x = -1 - np.arange(49, dtype=np.float32).reshape(1, 7, 7, 1)  # Negative: padding must not win.
  np.testing.assert_array_equal(max_pool(x)[0, :, :, 0], x[0, 0:5:2, 0:5:2, 0])
  moved = np.maximum(np.arange(7) - 1, 0)
  np.testing.assert_array_equal(max_pool(x, 1)[0, :, :, 0], x[0][moved][:, moved, 0])


def written(folder, state, name='network'):
  """A .pth of the state with counters, named by its hash, as published files are."""
  import torch

  folder.mkdir(exist_ok=True)
  tensors = {key: torch.from_numpy(value) for key, value in state.items()}
  counters = {
    f'{key[:-5]}num_batches_tracked': torch.tensor(0) for key in state if '.bn.bias' in key
  }
  torch.save({**tensors, **counters}, folder / 'unnamed.pth')
  digest = hashlib.sha256((folder / 'unnamed.pth').read_bytes()).hexdigest()
  path = folder / f'{name}-{digest[:8]}.pth'
  (folder / 'unnamed.pth').rename(path)
  return path, digest


@pytest.fixture(scope='module')
def given(tmp_path_factory, state):
  """(path of a .pth file, its SHA-256)."""
  return written(tmp_path_factory.mktemp('given'), state)


def test_a_pickle_is_converted_once(given, state, tmp_path, monkeypatch):
  path, digest = given
  first = inception.load(str(path), tmp_path, allow_pickle=True)
  assert first.sha256 == digest and set(first.state) == set(state)
  monkeypatch.setattr(inception.weights, '_read_pickle', None)  # Not needed any more.
  second = inception.load(str(path), tmp_path)
  (converted,) = (tmp_path / 'features').iterdir()
  third = inception.load(str(converted), tmp_path / 'elsewhere')
  for found in (second, third):
    assert found.sha256 == digest
    np.testing.assert_array_equal(found.state['fc.weight'], state['fc.weight'])


def test_the_published_file_is_found_in_torchs_cache_without_leave(given, tmp_path, monkeypatch):
  """Its hash is known, so that it is read without --config.allow_pickle."""
  path, digest = given
  monkeypatch.setattr(inception, 'SHA256', digest)
  monkeypatch.setattr(inception, 'FILE', path.name)
  monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
  folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
  folder.mkdir(parents=True)
  shutil.copy(path, folder)
  assert inception.load('', tmp_path / 'cache').sha256 == digest
  shutil.rmtree(tmp_path / 'torch')
  assert inception.load('', tmp_path / 'cache').sha256 == digest  # What was converted is enough.


def test_another_pickle_needs_leave(given, tmp_path):
  with pytest.raises(InputError, match=r'allow_pickle=True'):
    inception.load(str(given[0]), tmp_path)


def test_a_truncated_file_is_told_by_its_hash(given, tmp_path):
  cut = tmp_path / given[0].name
  cut.write_bytes(given[0].read_bytes()[:-1000])
  with pytest.raises(DamagedError, match=rf'{cut.name}: its SHA-256 is .*, its name says'):
    inception.load(str(cut), tmp_path, allow_pickle=True)
  assert not (tmp_path / 'features').exists()


def test_a_changed_conversion_is_told(given, tmp_path):
  inception.load(str(given[0]), tmp_path, allow_pickle=True)
  (converted,) = (tmp_path / 'features').iterdir()
  content = bytearray(converted.read_bytes())
  content[-40] ^= 1
  converted.write_bytes(content)
  with pytest.raises(DamagedError, match=f'{converted.name}: not what was written'):
    inception.load(str(given[0]), tmp_path, allow_pickle=True)


def test_safetensors_of_another_origin_are_refused(given, state, tmp_path):
  foreign = tmp_path / 'foreign.safetensors'
  save_file({'fc.weight': state['fc.weight']}, foreign)
  with pytest.raises(InputError, match='not converted here'):
    inception.load(str(foreign), tmp_path)
  assert load_file(foreign)


def test_a_network_of_other_shapes_is_refused(state, tmp_path):
  lacking = {key: value for key, value in state.items() if key != 'Mixed_7c.branch1x1.bn.bias'}
  lacking['fc.weight'] = lacking['fc.weight'][:1000]
  path, _ = written(tmp_path, lacking)
  with pytest.raises(
    InputError, match=r'missing Mixed_7c\.branch1x1\.bn\.bias[\s\S]*fc\.weight gives'
  ):
    inception.load(str(path), tmp_path, allow_pickle=True)
  assert not (tmp_path / 'features').exists()


def test_without_weights_and_network_one_message_says_what_goes_where(tmp_path, monkeypatch):
  monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
  monkeypatch.setattr(inception, 'URL', 'http://127.0.0.1:9/nothing.pth')
  with pytest.raises(InputError) as stop:
    inception.load('', tmp_path)
  for needed in (inception.FILE, inception.SHA256, '--config.eval.inception_weights', 'hub'):
    assert needed in str(stop.value)
  with pytest.raises(InputError, match=r'inception_weights: .*none\.pth: no such file'):
    inception.load(str(tmp_path / 'none.pth'), tmp_path)
