"""Pictures hold the images that they were given, where they should be."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.reporting.images import GAP, enlarge, grid, pairs, resize, save_gif
from diffusion_jax.runtime import files


@pytest.mark.parametrize('channels', [1, 3])
def test_grid_puts_every_image_in_its_place(channels):
  images = np.random.default_rng(0).integers(0, 256, (2, 3, 50, 60, channels), dtype=np.uint8)
  picture = grid(images)
  assert picture.shape == (2 * 52 + GAP, 3 * 62 + GAP, 3) and picture.dtype == np.uint8
  for row in range(2):
    for column in range(3):
      top, left = GAP + row * 52, GAP + column * 62
      found = picture[top : top + 50, left : left + 60]
      np.testing.assert_array_equal(found, np.broadcast_to(images[row, column], found.shape))


def test_names_widen_the_picture_and_leave_the_images_alone():
  images = np.zeros((2, 3, 50, 60, 1), np.uint8)
  plain, named = grid(images), grid(images, ['ant', 'bumblebee'])
  assert named.shape[0] == plain.shape[0] and named.shape[1] > plain.shape[1]
  np.testing.assert_array_equal(named[:, -plain.shape[1] :], plain)
  margin = named[:, : -plain.shape[1]]
  assert margin[:52].min() < 128 and margin[52:].min() < 128  # Something is written in both rows.


def test_small_images_are_enlarged_without_being_moved_or_mixed():
  images = np.zeros((2, 8, 8, 3), np.uint8)
  images[1, :4, :, 2] = 255  # Blue above, black below.
  large = enlarge(images)
  assert large.shape == (2, 48, 48, 3) and large[0].max() == 0
  assert np.all(large[1, :18, :, 2] == 255) and large[1, 30:, :, 2].max() == 0
  assert large[1, :, :, :2].max() == 0
  assert enlarge(np.zeros((1, 64, 64, 1), np.uint8)).shape == (1, 64, 64, 1)


def test_files(tmp_path):
  frames = [np.full((10, 12, 3), level, np.uint8) for level in (0, 100, 200)]
  files.write_png(tmp_path / 'a.png', frames[1])
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a.png')), frames[1])
  save_gif(tmp_path / 'a.gif', frames)
  gif = Image.open(tmp_path / 'a.gif')
  assert gif.n_frames == 3 and gif.size == (12, 10)
  for i, frame in enumerate(frames):
    gif.seek(i)
    np.testing.assert_array_equal(np.asarray(gif.convert('RGB')), frame)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.gif', 'a.png']


def test_resize_scales_both_ways_and_keeps_what_fits():
  halves = np.zeros((1, 64, 32, 3), np.uint8)
  halves[:, :32, :, 0] = 200  # Red above, black below.
  for height, width in ((128, 96), (16, 16)):
    made = resize(halves, height, width)
    assert made.shape == (1, height, width, 3) and made[..., 1:].max() == 0
    assert np.all(made[0, : height // 4, :, 0] == 200) and made[0, -height // 4 :].max() == 0
  assert resize(halves, 64, 32) is halves


@pytest.mark.parametrize('count, shape', [(9, (2, 8)), (3, (1, 6)), (4, (1, 8))])
def test_pairs_stand_side_by_side(count, shape):
  real = np.arange(count, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 48, 48, 1), np.uint8)
  picture = pairs(real, real + 100, 4)
  assert picture.shape == (*(n * (48 + GAP) + GAP for n in shape), 3)
  centres = picture[GAP + 24 :: 48 + GAP, GAP + 24 :: 48 + GAP, 0].reshape(-1, 2)
  expected = np.arange(shape[0] * shape[1] // 2)
  np.testing.assert_array_equal(centres, np.stack([expected, expected + 100], axis=1))
