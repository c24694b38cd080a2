"""Grids and animations of images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

MIN_SIDE = 48  # Smaller images are enlarged by a whole factor, so that they can be seen.
GAP = 2


def enlarge(images: np.ndarray) -> np.ndarray:
  """(..., H, W, C) uint8 -> whole-number nearest enlargement to MIN_SIDE pixels or more."""
  factor = max(1, -(-MIN_SIDE // max(images.shape[-3:-1])))
  return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def grid(images: np.ndarray, row_names: Sequence[str] = ()) -> np.ndarray:
  """(rows, columns, H, W, 1 or 3) uint8 -> one (H', W', 3) picture, row names on the left."""
  images = enlarge(images)
  images = np.broadcast_to(images, (*images.shape[:-1], 3))
  rows, columns, height, width, _ = images.shape
  canvas = np.full((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
  for row in range(rows):
    for column in range(columns):
      top, left = GAP + row * (height + GAP), GAP + column * (width + GAP)
      canvas[top : top + height, left : left + width] = images[row, column]
  return _with_names(canvas, row_names, height + GAP) if len(row_names) else canvas


def _with_names(canvas: np.ndarray, names: Sequence[str], pitch: int) -> np.ndarray:
  margin = 12 + 7 * min(max(map(len, names)), 24)
  picture = Image.new('RGB', (canvas.shape[1] + margin, canvas.shape[0]), 'white')
  picture.paste(Image.fromarray(canvas), (margin, 0))
  draw = ImageDraw.Draw(picture)
  for row, name in enumerate(names):
    draw.text((margin - 6, GAP + row * pitch + pitch // 2), name[:24], fill='black', anchor='rm')
  return np.asarray(picture)


def save_png(path: Path, picture: np.ndarray) -> None:
  """Writes beside and renames: a picture is whole or absent."""
  temporary = path.with_suffix('.tmp')
  Image.fromarray(picture).save(temporary, format='PNG')
  os.replace(temporary, path)


def save_gif(path: Path, pictures: Sequence[np.ndarray], seconds: float = 3.0) -> None:
  """An endless animation over `seconds`, the last picture held for 1.5 more."""
  frames = [Image.fromarray(p).convert('P', palette=Image.Palette.ADAPTIVE) for p in pictures]
  durations = [int(1000 * seconds / len(frames))] * (len(frames) - 1) + [1500]
  temporary = path.with_suffix('.tmp')
  frames[0].save(
    temporary,
    format='GIF',
    save_all=True,
    append_images=frames[1:],
    duration=durations,
    loop=0,
  )
  os.replace(temporary, path)
