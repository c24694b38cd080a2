"""Every form of image comes out upright, in RGB, with the pixels of an independent resize."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffusion_jax.data.decode import FORMATS, BadImage, center_crop, decode, to_pixels
from tests.support.sources import encoded, picture

SIZE = (40, 24)


def quadrants(mode='RGB'):
  """Red, green / blue, white: which corner is where shows the orientation."""
  image = Image.new('RGB', SIZE)
  width, height = SIZE[0] // 2, SIZE[1] // 2
  for i, color in enumerate(('red', 'lime', 'blue', 'white')):
    image.paste(
      color, (i % 2 * width, i // 2 * height, i % 2 * width + width, i // 2 * height + height)
    )
  return image.convert(mode)


def close(found, expected, tolerance=12):
  difference = np.asarray(found, int) - np.asarray(expected, int)
  return np.abs(difference).mean() <= tolerance


@pytest.mark.parametrize(
  'name, mode',
  [
    ('JPEG', 'RGB'),
    ('JPEG', 'L'),
    ('JPEG', 'CMYK'),
    ('PNG', 'RGB'),
    ('PNG', 'RGBA'),
    ('PNG', 'LA'),
    ('PNG', 'P'),
    ('PNG', '1'),
    ('PNG', 'L'),
    ('WEBP', 'RGB'),
    ('WEBP', 'RGBA'),
    ('BMP', 'RGB'),
    ('BMP', 'L'),
    ('GIF', 'P'),
  ],
)
def test_every_mode_becomes_rgb(name, mode):
  image = quadrants(mode)
  found, kind = decode(encoded(image, name))
  assert found.mode == 'RGB' and found.size == SIZE and kind == name
  assert close(found, image.convert('RGB'))


def test_16_bits_are_scaled_not_cut():
  ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
  found = np.asarray(decode(encoded(Image.fromarray(ramp), 'PNG'))[0])
  np.testing.assert_allclose(found[..., 0], ramp / 257, atol=0.51)


def test_transparency_is_laid_over_white():
  clear = Image.new('RGBA', SIZE, (200, 0, 0, 0))
  clear.putpixel((3, 3), (10, 20, 30, 255))
  found = np.asarray(decode(encoded(clear, 'PNG'))[0])
  np.testing.assert_array_equal(found[3, 3], [10, 20, 30])
  assert (found.reshape(-1, 3) == 255).all(axis=1).sum() == SIZE[0] * SIZE[1] - 1
  indexed = Image.new('P', SIZE, 0)
  found = np.asarray(decode(encoded(indexed, 'GIF', transparency=0))[0])
  assert (found == 255).all()


@pytest.mark.parametrize('name', ['GIF', 'WEBP', 'PNG'])
def test_the_first_frame_of_an_animation(name):
  frames = [quadrants(), Image.new('RGB', SIZE, 'black')]
  animated = encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=100)
  assert close(decode(animated)[0], frames[0])


@pytest.mark.parametrize('name', ['JPEG', 'PNG', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientations_come_out_upright(name, orientation):
  """Stored as a camera would have: the inverse of what the tag asks for (EXIF 2.3, 4.6.4)."""
  upright = np.asarray(quadrants())
  stored = {
    1: upright,
    2: upright[:, ::-1],
    3: upright[::-1, ::-1],
    4: upright[::-1],
    5: upright.swapaxes(0, 1),
    6: upright.swapaxes(0, 1)[::-1],
    7: upright.swapaxes(0, 1)[::-1, ::-1],
    8: upright.swapaxes(0, 1)[:, ::-1],
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  found, _ = decode(encoded(Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif))
  assert found.size == SIZE and close(found, upright)


def test_several_pictures_in_one_jpeg_as_phones_write_them():
  file = io.BytesIO()
  quadrants().save(file, format='MPO', save_all=True, append_images=[quadrants().rotate(180)])
  found, kind = decode(file.getvalue())
  assert close(found, quadrants()) and kind in FORMATS['.jpg']


@pytest.mark.parametrize(
  'content, reason',
  [
    (b'', 'empty'),
    (b'<html>not found</html>', 'not an image'),
    (encoded(picture(0))[:-200], 'damaged .*truncated'),
    (encoded(picture(0), 'PNG')[:-50], 'damaged'),
    (encoded(picture(0), 'WEBP')[:100], 'damaged|not an image'),
    (encoded(picture(0), 'TIFF'), 'not an image of a known format'),
  ],
)
def test_bad_files_say_why(content, reason):
  with pytest.raises(BadImage, match=reason):
    decode(content)


def box_halved(pixels: np.ndarray) -> np.ndarray:
  """(H, W, C) -> (H // 2, W // 2, C): means of the pixels whose centre lies in the target pixel."""
  for axis in (0, 1):
    count = pixels.shape[axis] // 2
    edges = np.ceil(np.arange(count + 1) * pixels.shape[axis] / count - 0.5).astype(int)
    parts = np.split(pixels, edges[1:-1], axis=axis)
    means = np.stack([part.mean(axis=axis) for part in parts], axis=axis)
    pixels = np.floor(means + 0.5)  # Stored as uint8 after each axis.
  return pixels


def reference_crop(image: Image.Image, size: int) -> np.ndarray:
  """The same recipe: means by NumPy, then TensorFlow's cubic (Keys 1981) with antialiasing."""
  import tensorflow as tf

  pixels = np.asarray(image, np.float64)
  while min(pixels.shape[:2]) >= 2 * size:
    pixels = box_halved(pixels)
  height, width = pixels.shape[:2]
  scale = size / min(height, width)
  shape = (round(height * scale), round(width * scale))
  pixels = np.asarray(tf.image.resize(pixels, shape, 'bicubic', antialias=True))
  top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
  return np.clip(pixels[top : top + size, left : left + size], 0, 255)


@pytest.mark.parametrize(
  'size', [(160, 213), (128, 128), (256, 320), (700, 1100), (90, 60), (1283, 517)]
)
def test_the_crop_is_that_of_an_independent_implementation(size):
  """With no, one and two halvings, odd sizes, and enlargement."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (size[1] // 6, size[0] // 6, 3), dtype=np.uint8)
  image = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
  found = np.asarray(center_crop(image, 128), float)
  expected = reference_crop(image, 128)
  assert found.shape == expected.shape == (128, 128, 3)
  assert np.abs(found - expected).mean() < 1
  assert found.std() > 10  # The picture is not flat, so the comparison says something.


def test_gray_output_is_luma():
  image = quadrants()
  found, *_ = to_pixels(encoded(image, 'PNG'), 24, 1)
  assert found.shape == (24, 24, 1) and found.dtype == np.uint8
  r, g, b = (np.asarray(ImageOps.fit(image, (24, 24)), float)[..., i] for i in range(3))
  np.testing.assert_allclose(found[2, 2, 0], (0.299 * r + 0.587 * g + 0.114 * b)[2, 2], atol=1)
