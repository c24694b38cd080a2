"""A folder of images is read as Pillow reads it, or refused by the name of the file that is wrong."""

import hashlib
import os
import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import image_folder
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import DamagedError, InputError
from tests.support.sources import encoded, picture

SIZE = (20, 12)  # Width, height.


@pytest.fixture
def folder(tmp_path):
  """Files of all forms, in folders, with what is no image beside them."""
  root = tmp_path / 'images'
  for number, name in enumerate(('b.PNG', 'sub/a.jpg', 'sub/deep/c.webp', 'a.bmp', 'sub2/z.jpeg')):
    kind = {'jpg': 'JPEG', 'jpeg': 'JPEG'}.get(name.split('.')[1], name.split('.')[1].upper())
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(encoded(picture(number, SIZE), kind))
  (root / 'notes.txt').write_text('not an image')
  (root / '._b.PNG').write_bytes(b'what a Mac leaves')
  return root


NAMES = ('a.bmp', 'b.PNG', 'sub/a.jpg', 'sub/deep/c.webp', 'sub2/z.jpeg')


def test_images_are_read_in_the_order_of_their_paths(folder):
  found = image_folder.open_folder(folder, 3)
  assert found.names == NAMES and found.num_examples == 5 and found.shape == (12, 20, 3)
  batch = found.read(np.array([4, 0, 2]))
  for image, name in zip(batch['image'], (NAMES[4], NAMES[0], NAMES[2])):
    np.testing.assert_array_equal(image, Image.open(folder / name).convert('RGB'))
  np.testing.assert_array_equal(batch['label'], np.zeros(3, np.int32))
  gray = image_folder.open_folder(folder, 1)
  assert gray.element['image'].shape == (12, 20, 1)
  expected = np.asarray(Image.open(folder / NAMES[1]).convert('L'))[..., None]
  np.testing.assert_array_equal(gray.read(np.array([1]))['image'][0], expected)


def test_the_fingerprint_is_that_of_names_and_pixels(folder):
  found = image_folder.open_folder(folder, 3)
  digest = hashlib.sha256(b'(12, 20, 3)')
  for name in NAMES:
    pixels = np.asarray(Image.open(folder / name).convert('RGB'))
    digest.update(name.encode() + b'\0' + pixels.tobytes())
  assert found.fingerprint == digest.hexdigest()[:16]
  content = Image.open(folder / 'a.bmp').copy()
  (folder / 'a.bmp').write_bytes(encoded(content, 'PNG'))  # Other bytes, the same pixels.
  assert image_folder.open_folder(folder, 3).fingerprint == found.fingerprint
  content.putpixel((3, 3), (1, 2, 3))
  (folder / 'a.bmp').write_bytes(encoded(content, 'BMP'))
  assert image_folder.open_folder(folder, 3).fingerprint != found.fingerprint
  assert image_folder.open_folder(folder, 1).fingerprint != found.fingerprint


def test_an_image_that_lies_on_its_side_is_turned(tmp_path):
  """By its header, before pixels are read: with the others it has one size."""
  turned = Image.Exif()
  turned[0x0112] = 6
  (tmp_path / 'a.jpg').write_bytes(encoded(picture(0, SIZE)))
  (tmp_path / 'b.jpg').write_bytes(encoded(picture(1, SIZE[::-1]), exif=turned.tobytes()))
  found = image_folder.open_folder(tmp_path, 3)
  expected = Image.open(tmp_path / 'b.jpg').transpose(Image.Transpose.ROTATE_270)
  np.testing.assert_array_equal(found.read(np.array([1]))['image'][0], expected)


def test_mixed_sizes_are_told_before_any_pixel_is_decoded(folder, monkeypatch):
  monkeypatch.setattr(image_folder, 'decode', lambda encoded: pytest.fail('decoded'))
  (folder / 'sub' / 'b.png').write_bytes(encoded(picture(9, (20, 13)), 'PNG'))
  with pytest.raises(InputError) as caught:
    image_folder.open_folder(folder, 3)
  assert str(caught.value).startswith(
    f'{folder}/sub/b.png: mixed sizes in a folder: 20x13, but {folder}/a.bmp is 20x12'
  )
  assert '--mode=prepare' in str(caught.value)


@pytest.mark.parametrize('name', NAMES)
def test_an_unreadable_file_is_named(folder, name):
  whole = (folder / name).read_bytes()
  for content in (b'', b'not an image', whole[:30], whole[: len(whole) * 2 // 3]):
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedError, match=f'{re.escape(name)}: not a readable image'):
      image_folder.open_folder(folder, 3)


def test_no_images_and_no_folder(tmp_path):
  (tmp_path / 'notes.txt').write_text('')
  with pytest.raises(InputError, match=r'no images in it, looked for \.png'):
    image_folder.open_folder(tmp_path, 3)
  for name in ('gone', 'notes.txt'):
    with pytest.raises(InputError, match=f'{name}: no such folder'):
      image_folder.open_folder(tmp_path / name, 3)


def test_a_link_in_a_circle_is_entered_once(folder):
  (folder / 'sub' / 'again').symlink_to(folder)
  assert image_folder.open_folder(folder, 3).names == NAMES


def source(count, channels, seed=0):
  rng = np.random.Generator(np.random.Philox(seed))
  images = rng.integers(0, 256, (count, 6, 5, channels), np.uint8)
  return Arrays(images, 'some')


@pytest.mark.parametrize('channels', [1, 3])
def test_what_is_written_is_read_by_others(tmp_path, channels):
  given = source(70, channels)
  assert image_folder.write(tmp_path / 'png', given) == 70
  paths = sorted((tmp_path / 'png').iterdir())
  assert [path.name for path in paths] == [f'{i:06d}.png' for i in range(70)]
  for path, image in zip(paths, given.values):
    assert Image.open(path).mode == ('L' if channels == 1 else 'RGB')
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.squeeze(image))
  found = image_folder.open_folder(tmp_path / 'png', channels)
  np.testing.assert_array_equal(found.read(np.arange(70))['image'], given.values)


def test_writing_goes_on_where_it_stopped(tmp_path):
  given = source(12, 3)
  image_folder.write(tmp_path, given)
  times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  for number in (0, 5, 11):
    (tmp_path / f'{number:06d}.png').unlink()
  (tmp_path / 'mine.png').write_bytes(b'of somebody else')
  assert image_folder.write(tmp_path, given) == 3
  after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  assert sum(times[name] == after[name] for name in times) == 9
  assert image_folder.write(tmp_path, given) == 0


def test_files_of_classes_lie_in_their_folders(tmp_path):
  """Those that lay elsewhere go, with folders that are left empty; the files of others stay."""
  given, root = source(6, 3), tmp_path / 'png'
  image_folder.write(root, given)
  assert image_folder.write(root, given, ['cat', 'dog'] * 3) == 6
  (root / 'dog' / 'mine.png').write_bytes(b'of somebody else')
  assert image_folder.write(root, given, ['cat', 'dog'] * 3) == 0
  assert image_folder.write(root, given, ['cat', 'ant', 'ant', 'ant', 'cat', 'ant']) == 4
  found = sorted(path.relative_to(root).as_posix() for path in root.rglob('*.png'))
  ants = [f'ant/{number:06d}.png' for number in (1, 2, 3, 5)]
  assert found == [*ants, 'cat/000000.png', 'cat/000004.png', 'dog/mine.png']
  np.testing.assert_array_equal(np.asarray(Image.open(root / ants[3])), given.values[5])


def test_what_is_there_of_another_set_is_replaced_and_surplus_removed(tmp_path):
  image_folder.write(tmp_path, source(12, 3, seed=1))
  (tmp_path / 'mine.png').write_bytes(b'of somebody else')
  given = source(8, 3, seed=2)
  assert image_folder.write(tmp_path, given) == 8
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == [*(f'{i:06d}.png' for i in range(8)), 'mine.png']
  for number, image in enumerate(given.values):
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f'{number:06d}.png')), image)


def test_a_pipe_is_named_and_nothing_waits_for_it(folder):
  os.mkfifo(folder / 'x.png')
  with pytest.raises(DamagedError, match=r'x\.png'):
    image_folder.open_folder(folder, 3)
