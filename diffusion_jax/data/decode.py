"""Decodes image files to upright RGB or grayscale pixels of one size.

Resized as by Dhariwal & Nichol (2021, arXiv:2105.05233, released code): halved by box filter while
twice too large, bicubic to the short side, centre crop. Needs only NumPy and Pillow.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

RESIZE = 'box-halve, bicubic, centre crop'
# The formats that files of each suffix may hold; others are reported as mislabelled.
FORMATS = {'.jpg': {'JPEG', 'MPO'}, '.jpeg': {'JPEG', 'MPO'}}
FORMATS |= {f'.{name}': {name.upper()} for name in ('png', 'webp', 'bmp', 'gif')}
READ = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')  # MPO, several JPEGs in one, is opened as JPEG.
MAX_ASPECT = 64
BACKGROUND = 'white'  # Behind transparent pixels.


class BadImage(Exception):
  """A file gives no image; the message says why in a few words."""


def decode(encoded: bytes) -> tuple[Image.Image, str]:
  """Decodes an image file to an upright 8-bit image in mode 'RGB'. Returns: it, and the name of its format.

  The first frame of an animation; transparency over white; 16 bits scaled to 8.
  Raises: BadImage if it is empty, truncated or no image.
  """
  if not encoded:
    raise BadImage('empty')
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # About odd metadata and large sizes, which do not matter.
      image = Image.open(io.BytesIO(encoded), formats=READ)
      image.load()
      name = image.format
      ImageOps.exif_transpose(image, in_place=True)
      return _rgb(image), name
  except UnidentifiedImageError as error:
    raise BadImage('not an image of a known format') from error
  except Image.DecompressionBombError as error:
    raise BadImage(f'too large ({error})') from error
  except Exception as error:  # Pillow's decoders raise whatever their format's parser met.
    raise BadImage(f'damaged ({type(error).__name__}: {str(error)[:80]})') from error


def _rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I') or image.mode == 'F':  # 16 bits a pixel.
    wide = np.asarray(image).astype(np.float64)
    image = Image.fromarray(np.clip(np.round(wide / 257), 0, 255).astype(np.uint8))
  if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
    image = image.convert('RGBA')
    below = Image.new('RGBA', image.size, BACKGROUND)
    image = Image.alpha_composite(below, image)
  return image if image.mode == 'RGB' else image.convert('RGB')


def center_crop(image: Image.Image, size: int) -> Image.Image:
  """Resizes the image and cuts out the central square, (size, size). Smaller images are enlarged.

  Raises: BadImage for a strip that says nothing and would be enlarged beyond all memory.
  """
  if max(image.size) > MAX_ASPECT * min(image.size):
    raise BadImage(f'too narrow ({image.width}x{image.height})')
  while min(image.size) >= 2 * size:
    image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
  scale = size / min(image.size)
  resized = (round(image.width * scale), round(image.height * scale))
  image = image.resize(resized, Image.Resampling.BICUBIC)
  left, top = (image.width - size) // 2, (image.height - size) // 2
  return image.crop((left, top, left + size, top + size))


def to_pixels(encoded: bytes, size: int, channels: int) -> tuple[np.ndarray, str, bool]:
  """Decodes an image file -> (size, size, channels) uint8, its format, and whether it had to be enlarged.

  channels: 3, or 1 for luma (ITU-R 601). Raises: BadImage.
  """
  image, name = decode(encoded)
  is_small = min(image.size) < size
  image = center_crop(image, size)
  pixels = np.asarray(image.convert('L'))[..., None] if channels == 1 else np.asarray(image)
  return pixels, name, is_small


def header(encoded: bytes) -> tuple[int, bool]:
  """Reads (short side in pixels, whether it is gray) from the beginning of an image file.

  Raises: BadImage if it is too little, or no image.
  """
  try:
    with Image.open(io.BytesIO(encoded), formats=READ) as image:
      return min(image.size), image.mode in ('1', 'L', 'LA', 'F') or image.mode.startswith('I')
  except Exception as error:  # Pillow's decoders raise whatever their format's parser met.
    raise BadImage(str(error)) from error
