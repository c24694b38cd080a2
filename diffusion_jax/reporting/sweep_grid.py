"""The picture of a sweep: the same samples in every cell, a row a value of one field, a column of the other."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from diffusion_jax.reporting import lettering
from diffusion_jax.reporting.images import GAP, enlarge

BLOCK = (
  4  # Samples of a cell beside others: two rows of two. A cell that has a row for itself shows all.
)
MIN_SIDE = 56  # Of a sample, in pixels.
EMPTY = 235  # The grey of a sample that is not there.
NOTE = '#666666'
BETWEEN = 12  # Pixels between cells.
TITLE, NAME, SMALL = 15, 14, 11  # Sizes of letters.
WIDEST = 180  # The names of rows, in pixels; longer ones are broken into lines.
LEAST_WIDTH = 420  # So that a title has room.
LINES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
  """A cell in the picture: samples (n, H, W, C) uint8, and the note below them."""

  images: np.ndarray
  note: str


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """rows, columns: names, downwards and to the right; '' names none."""

  title: str
  rows: Sequence[str]
  columns: Sequence[str]
  cells: Mapping[tuple[int, int], Shown]


def picture(layout: Layout) -> np.ndarray:
  """One (H', W', 3) uint8 picture; a cell that is missing is grey."""
  blocks = {place: _block(cell.images, len(layout.columns)) for place, cell in layout.cells.items()}
  high, wide = (max(block.shape[axis] for block in blocks.values()) for axis in (0, 1))
  title, name, small = map(lettering.font, (TITLE, NAME, SMALL))
  notes = [
    lettering.wrapped(cell.note, small, wide, LINES) if cell.note else []
    for cell in layout.cells.values()
  ]
  below = max(map(len, notes)) * lettering.height(small)
  left = BETWEEN + (
    lettering.widest(layout.rows, name, WIDEST) + BETWEEN if any(layout.rows) else 0
  )
  pitch = wide + BETWEEN, high + below + BETWEEN
  above = [lettering.wrapped(column, name, wide + BETWEEN, LINES) for column in layout.columns]
  heading = max(map(len, above)) * lettering.height(name) if any(layout.columns) else 0
  width = max(left + len(layout.columns) * pitch[0], LEAST_WIDTH if layout.title else 0)
  titles = (
    lettering.wrapped(layout.title, title, width - 2 * BETWEEN, LINES) if layout.title else []
  )
  top = BETWEEN + len(titles) * lettering.height(title) + heading + BETWEEN // 2
  canvas = Image.new('RGB', (width, top + len(layout.rows) * pitch[1]), 'white')
  draw = ImageDraw.Draw(canvas)
  lettering.write(draw, (BETWEEN, BETWEEN // 2), titles, title, 'la')
  for number, lines in enumerate(above):
    x, y = left + number * pitch[0] + wide / 2, top - len(lines) * lettering.height(name)
    lettering.write(draw, (x, y - 2), lines, name, 'ma')
  for number, text in enumerate(layout.rows):
    lines = lettering.wrapped(text, name, WIDEST, LINES)
    y = top + number * pitch[1] + (high - len(lines) * lettering.height(name)) / 2
    lettering.write(draw, (left - BETWEEN, y), lines, name, 'ra')
  for row in range(len(layout.rows)):
    for column in range(len(layout.columns)):
      place = (left + column * pitch[0], top + row * pitch[1])
      block = blocks.get((row, column))
      if block is None:
        block = np.full((high, wide, 3), EMPTY, np.uint8)
      canvas.paste(Image.fromarray(block), place)
  for (row, column), lines in zip(layout.cells, notes):
    x, y = left + column * pitch[0] + wide / 2, top + row * pitch[1] + high
    for number, line in enumerate(lines):
      place = (x, y + number * lettering.height(small))
      draw.text(place, line, fill=NOTE, font=small, anchor='ma')
  return np.asarray(canvas)


def _block(images: np.ndarray, columns: int) -> np.ndarray:
  """Samples side by side, (H', W', 3): in one row if the cell has no other beside it, else in a square."""
  images = images if columns == 1 else images[:BLOCK]
  images = enlarge(images, MIN_SIDE)
  images = np.broadcast_to(images, (*images.shape[:-1], 3))
  count, height, width, _ = images.shape
  across = count if columns == 1 else math.isqrt(count - 1) + 1
  down = -(-count // across)
  block = np.full((down * (height + GAP) - GAP, across * (width + GAP) - GAP, 3), 255, np.uint8)
  for number, image in enumerate(images):
    y, x = (number // across) * (height + GAP), (number % across) * (width + GAP)
    block[y : y + height, x : x + width] = image
  return block
