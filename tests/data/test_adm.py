"""ADM's .npz: what NumPy writes is read, what we write is read by NumPy, all else is refused."""

import hashlib
import io
import re
import zipfile

import numpy as np
import pytest

from diffusion_jax.data import adm
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import DamagedError, InputError

RNG = np.random.Generator(np.random.Philox(5))
IMAGES = RNG.integers(0, 256, (7, 4, 5, 3), np.uint8)
MEAN = RNG.normal(size=6)
FACTOR = RNG.normal(size=(6, 6))
COVARIANCE = FACTOR @ FACTOR.T


def written(tmp_path, save=np.savez, **arrays):
  path = tmp_path / 'reference.npz'
  save(path, **arrays)
  return path


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_images_and_statistics_come_back(tmp_path, save):
  path = written(tmp_path, save, mu=MEAN, sigma=COVARIANCE, mu_s=MEAN[:2], arr_0=IMAGES)
  found = adm.read(path)
  np.testing.assert_array_equal(found.images, IMAGES)
  np.testing.assert_array_equal(found.mean, MEAN)
  np.testing.assert_array_equal(found.covariance, COVARIANCE)
  assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
  assert not found.images.flags.writeable


def test_either_may_be_missing_and_float32_is_widened(tmp_path):
  found = adm.read(written(tmp_path, arr_0=np.asfortranarray(IMAGES)))
  np.testing.assert_array_equal(found.images, IMAGES)
  assert found.mean is None and found.covariance is None
  single = {'mu': MEAN.astype(np.float32), 'sigma': COVARIANCE.astype(np.float32)}
  single['sigma'][0, 1] *= 1 + 1e-6  # As single precision leaves it.
  found = adm.read(written(tmp_path, **single))
  assert found.images is None and found.mean.dtype == found.covariance.dtype == np.float64
  np.testing.assert_allclose(found.covariance, COVARIANCE, rtol=1e-5)


UNEVEN = COVARIANCE + np.triu(np.ones((6, 6)), 1)


@pytest.mark.parametrize(
  'arrays, message',
  [
    ({'images': IMAGES, 'y': MEAN}, "got 'images', 'y', allowed 'arr_0'"),
    ({}, "got nothing, allowed 'arr_0'"),
    ({'mu': MEAN}, "got 'mu', allowed"),
    ({'sigma': COVARIANCE, 'arr_0': IMAGES}, "got 'sigma', 'arr_0', allowed"),
    ({'arr_0': IMAGES / 255}, r"'arr_0' is float64 \(7, 4, 5, 3\), allowed uint8"),
    ({'arr_0': IMAGES[..., :1]}, r"'arr_0' is uint8 \(7, 4, 5, 1\)"),
    ({'arr_0': IMAGES.transpose(0, 3, 1, 2)}, r"'arr_0' is uint8 \(7, 3, 4, 5\)"),
    ({'arr_0': IMAGES[:0]}, r"'arr_0' is uint8 \(0, 4, 5, 3\)"),
    ({'arr_0': np.array([IMAGES, None], object)}, "'arr_0' holds Python objects"),
    ({'mu': MEAN, 'sigma': COVARIANCE[:5]}, r"'sigma' float64 \(5, 6\), allowed"),
    ({'mu': MEAN[None], 'sigma': COVARIANCE}, r"'mu' float64 \(1, 6\)"),
    ({'mu': MEAN > 0, 'sigma': COVARIANCE}, r"'mu' bool \(6,\)"),
    ({'mu': MEAN, 'sigma': COVARIANCE * np.nan}, 'not finite'),
    ({'mu': MEAN, 'sigma': UNEVEN}, r"'sigma' is no covariance: .* by up to 1"),
  ],
)
def test_anything_else_is_refused_by_name(tmp_path, arrays, message):
  path = written(tmp_path, **arrays)
  with pytest.raises(InputError, match=f'^{re.escape(str(path))}: .*{message}'):
    adm.read(path)


def test_a_damaged_or_foreign_file_is_named(tmp_path):
  large = RNG.integers(0, 256, (40, 64, 64, 3), np.uint8)
  path = written(tmp_path, arr_0=large)
  whole = path.read_bytes()
  flipped = bytearray(whole)
  flipped[whole.index(large[30].tobytes()) + 1] ^= 1
  array = io.BytesIO()
  np.save(array, IMAGES)
  short = io.BytesIO()
  with zipfile.ZipFile(short, 'w') as file:  # The archive is whole, the array in it is not.
    file.writestr('arr_0.npy', array.getvalue()[:-5])
  for content in (b'', whole[:-30], flipped, array.getvalue(), b'no archive', short.getvalue()):
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r'reference\.npz: not a whole \.npz file'):
      adm.read(path)
  with pytest.raises(InputError, match=r'gone\.npz: cannot be read \(No such file'):
    adm.read(tmp_path / 'gone.npz')


def test_statistics_are_written_for_numpy(tmp_path):
  adm.write_feature_stats(tmp_path / 'm.npz', MEAN, COVARIANCE)
  with np.load(tmp_path / 'm.npz') as file:
    assert set(file) == {'mu', 'sigma'}
    np.testing.assert_array_equal(file['mu'], MEAN)
    np.testing.assert_array_equal(file['sigma'], COVARIANCE)
  np.testing.assert_array_equal(adm.read(tmp_path / 'm.npz').covariance, COVARIANCE)


def source(count, channels):
  images = np.random.Generator(np.random.Philox(count)).integers(
    0, 256, (count, 4, 5, channels), np.uint8
  )
  return Arrays(images, 'some', np.arange(count, dtype=np.int32) % 3)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('count', [1, 256, 600])
def test_images_are_written_for_numpy(tmp_path, channels, count):
  path, given = tmp_path / 'samples.npz', source(count, channels)
  adm.write_images(path, given, 'of these')
  with np.load(path) as file:
    assert list(file) == ['arr_0', 'arr_1']
    assert file['arr_0'].dtype == np.uint8 and file['arr_1'].dtype == np.int64
    np.testing.assert_array_equal(file['arr_0'], given.values.repeat(3 // channels, axis=-1))
    np.testing.assert_array_equal(file['arr_1'], given.labels)
  np.testing.assert_array_equal(adm.read(path).images[..., :channels], given.values)
  assert adm.comment_of(path) == 'of these' and adm.comment_of(tmp_path / 'gone.npz') is None
  again = tmp_path / 'again.npz'
  adm.write_images(again, given, 'of these')
  assert adm.read(again).digest == adm.read(path).digest


def test_an_interrupted_export_leaves_the_old_one(tmp_path):
  path = tmp_path / 'samples.npz'
  adm.write_images(path, source(5, 3))
  before = path.read_bytes()

  class Failing(Arrays):
    def read(self, indices):
      raise DamagedError('gone')

  given = source(9, 3)
  with pytest.raises(DamagedError):
    adm.write_images(path, Failing(given.values, given.labels, (), ''))
  assert path.read_bytes() == before
