"""Grids and animations of images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.runtime.files import replacing

MIN_SIDE = 48  # Smaller images are enlarged in pictures, so that a person can read them.
MIN_SIDE_ANIMATED = 32  # Noise does not compress.
MIN_SIDE_CAPTIONED = 96  # So that a name fits below.
GAP = 2


def enlarge(images: np.ndarray, min_side: int = MIN_SIDE) -> np.ndarray:
  """(..., H, W, 1 or 3) uint8 -> the same, bicubically enlarged by a whole factor to min_side."""
  height, width = images.shape[-3:-1]
  factor = -(-min_side // max(height, width))
  return resize(images, height * factor, width * factor) if factor > 1 else images


def resize(images: np.ndarray, height: int, width: int) -> np.ndarray:
  """(..., H, W, 1 or 3) uint8 -> (..., height, width, 1 or 3), bicubic."""
  *leading, old_height, old_width, channels = images.shape
  if (old_height, old_width) == (height, width):
    return images
  planes = np.moveaxis(images, -1, -3).reshape(-1, old_height, old_width)
  size = (width, height)
  resized = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in planes]
  stacked = np.stack([np.asarray(p) for p in resized])
  return np.moveaxis(stacked.reshape(*leading, channels, height, width), -3, -1)


def grid(images: np.ndarray, row_names: Sequence[str] = (), min_side: int = MIN_SIDE) -> np.ndarray:
  """(rows, columns, H, W, 1 or 3) uint8 -> one (H', W', 3) picture, row names on the left."""
  images = enlarge(images, min_side)
  images = np.broadcast_to(images, (*images.shape[:-1], 3))
  cells = np.pad(images, [(0, 0)] * 2 + [(GAP, 0)] * 2 + [(0, 0)], constant_values=255)
  rows, columns, height, width, _ = cells.shape
  canvas = cells.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
  canvas = np.pad(canvas, [(0, GAP), (0, GAP), (0, 0)], constant_values=255)
  return _with_names(canvas, row_names, height) if len(row_names) else canvas


def _with_names(canvas: np.ndarray, names: Sequence[str], pitch: int) -> np.ndarray:
  margin = 12 + 7 * min(max(map(len, names)), 24)
  picture = Image.new('RGB', (canvas.shape[1] + margin, canvas.shape[0]), 'white')
  picture.paste(Image.fromarray(canvas), (margin, 0))
  draw = ImageDraw.Draw(picture)
  for row, name in enumerate(names):
    draw.text((margin - 6, GAP + row * pitch + pitch // 2), name[:24], fill='black', anchor='rm')
  return np.asarray(picture)


def pairs(real: np.ndarray, made: np.ndarray, columns: int) -> np.ndarray:
  """(N, H, W, C) twice -> a picture with `columns` pairs a row; what fills no row but the first is left out."""
  count = len(real) // columns * columns or len(real)
  both = np.stack([real, made], axis=1)[:count]  # (N, 2, H, W, C)
  return grid(both.reshape(-(-count // columns), -1, *real.shape[1:]))


def captioned(images: np.ndarray, names: Sequence[str], columns: int = 10) -> np.ndarray:
  """(N, H, W, 1 or 3) uint8 and a name each -> one (H', W', 3) picture, the names below."""
  images = enlarge(images, MIN_SIDE_CAPTIONED)
  height, width = images.shape[1:3]
  line = 12
  pitch = (width + 2 * GAP, height + line + 2 * GAP)
  columns = min(columns, len(images))
  rows = -(-len(images) // columns)
  canvas = Image.new('RGB', (columns * pitch[0], rows * pitch[1]), 'white')
  draw = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=10)
  for i, (image, name) in enumerate(zip(images, names)):
    left, top = (i % columns) * pitch[0] + GAP, (i // columns) * pitch[1] + GAP
    rgb = np.broadcast_to(image, (height, width, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(rgb)), (left, top))
    while len(name) > 1 and draw.textlength(name, font=font) > width:
      name = name.removesuffix('…')[:-1] + '…'
    draw.text((left + width // 2, top + height + 1), name, fill='black', font=font, anchor='mt')
  return np.asarray(canvas)


def save_gif(path: Path, pictures: Sequence[np.ndarray], seconds: float = 3.0) -> None:
  """An endless animation over `seconds`, the last picture held for 1.5 more."""
  frames = [Image.fromarray(p).convert('P', palette=Image.Palette.ADAPTIVE) for p in pictures]
  durations = [int(1000 * seconds / len(frames))] * (len(frames) - 1) + [1500]
  with replacing(path) as stream:
    options = {'append_images': frames[1:], 'duration': durations, 'loop': 0}
    frames[0].save(stream, format='GIF', save_all=True, **options)
