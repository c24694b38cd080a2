"""Models side by side, denoising the same classes: a picture and an animation."""

import collections
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.reporting import lettering
from diffusion_jax.reporting.images import GAP, resize

MIN_SIDE, MAX_SIDE = 64, 128  # Side of an image in the picture.
MIN_COLUMN = 88  # Width of an image in the animation: that of the name above it.
MAX_PIXELS = 500_000  # Images in a frame of the animation; beyond that they get MIN_COLUMN.
MAX_ALL_PIXELS = 6_000_000  # All frames: about the bytes of the file, as noise does not compress.
MIN_FRAMES = 12
PANEL_CLASSES = 3  # Most classes in the picture.
BETWEEN = 3  # Gaps between classes or models, in sixteenths of an image.
LINES = 3  # Most lines of a name.
GREY = '#777777'
EMPTY = 235  # The grey of a class that a model has no sample of.
UNCONDITIONAL = '(unconditional)'


@dataclasses.dataclass(frozen=True, eq=False)
class Denoising:
  """Samples of a model on their way from noise.

  frames: (F, R, H, W, 1 or 3) uint8, noise first and the result last. classes: the name of the class
  of each of the R samples; empty for a model without classes. times: (F,) t of each frame, falling,
  or None for even steps.
  """

  model: str
  frames: np.ndarray
  classes: tuple[str, ...] = ()
  times: np.ndarray | None = None

  def snapshots(self, count: int) -> np.ndarray:
    """Numbers of the frames nearest to `count` even times from noise to result, (count,)."""
    total = len(self.frames)
    progress = np.linspace(0, 1, total)
    if self.times is not None and total > 1 and np.all(np.diff(self.times) < 0):
      progress = (self.times[0] - self.times) / (self.times[0] - self.times[-1])
    distance = np.abs(progress[:, None] - np.linspace(0, 1, count))
    return distance.argmin(axis=0)

  def rows(self, names: Sequence[str]) -> list[int | None]:
    """The sample of each class; without classes, the first ones. None: there is none."""
    if not self.classes:
      return [row if row < self.frames.shape[1] else None for row in range(len(names))]
    return [self.classes.index(name) if name in self.classes else None for name in names]


def shared_classes(models: Sequence[Denoising], limit: int) -> list[str]:
  """The classes that all models with classes show, or failing that most of them, `limit` at most.

  Where no model has classes: 'sample 1', 'sample 2', ...
  """
  conditional = [model for model in models if model.classes]
  if not conditional:
    most = max(model.frames.shape[1] for model in models)
    return [f'sample {i + 1}' for i in range(min(most, limit))]
  shown = collections.Counter(name for m in conditional for name in dict.fromkeys(m.classes))
  most = max(shown.values())
  return [name for name, number in shown.items() if number == most][:limit]


def picture(models: Sequence[Denoising], num_classes: int, num_snapshots: int) -> np.ndarray:
  """A row a model, a block of snapshots a class: one (H', W', 3) uint8 picture."""
  names = shared_classes(models, min(num_classes, PANEL_CLASSES))
  side = _side(models, MIN_SIDE)
  font, small, margin = lettering.font(side // 4), lettering.font(7 * side // 32), side // 8
  label = (
    lettering.widest([*(m.model for m in models), UNCONDITIONAL], font, round(3.2 * side))
    + 2 * margin
  )
  block, between = num_snapshots * (side + GAP) - GAP, BETWEEN * side // 16
  lefts = [label + k * (block + between) for k in range(len(names))]
  top = margin + lettering.height(font) + lettering.height(small)
  titles = [lettering.wrapped(model.model, font, label - 2 * margin, LINES) for model in models]
  lines = [len(t) * lettering.height(font) + _note(m, small) for t, m in zip(titles, models)]
  pitch = max(side, *lines) + 2 * GAP
  size = (lefts[-1] + block + margin, top + len(models) * pitch + margin)
  canvas = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(canvas)
  for left, name in zip(lefts, names):
    lettering.write(
      draw, (left + block / 2, margin), lettering.wrapped(name, font, block, 1), font, 'ma'
    )
    for x, text, anchor in ((left, 'noise', 'la'), (left + block, 'result', 'ra')):
      draw.text((x, margin + lettering.height(font)), text, fill=GREY, font=small, anchor=anchor)
  for i, (model, title) in enumerate(zip(models, titles)):
    middle = top + i * pitch + pitch / 2
    y = middle - (len(title) * lettering.height(font) + _note(model, small)) / 2
    lettering.write(draw, (label - margin, y), title, font, 'ra')
    _write_note(draw, (label - margin, y + len(title) * lettering.height(font)), model, small, 'ra')
    chosen = model.snapshots(num_snapshots)
    for left, row in zip(lefts, model.rows(names)):
      for k, frame in enumerate(chosen):
        place = (left + k * (side + GAP), round(middle - side / 2))
        canvas.paste(_cell(model, frame, row, side), place)
  return np.asarray(canvas)


def animation(models: Sequence[Denoising], num_classes: int) -> list[np.ndarray]:
  """A column a model, a row a class: (H', W', 3) uint8 pictures from noise to result.

  There are as many as the model with the most frames has, or fewer where the file would be too large
  to put anywhere; the others show their nearest in time.
  """
  names = shared_classes(models, num_classes)
  side = _side(models, MIN_COLUMN)
  side = side if len(models) * len(names) * side**2 <= MAX_PIXELS else MIN_COLUMN
  font, small, margin = lettering.font(13), lettering.font(11), 8
  pitch = (side + 2 * margin, side + GAP)
  left = lettering.widest(names, font, 2 * side) + 2 * margin
  titles = [lettering.wrapped(model.model, font, side + margin, LINES) for model in models]
  lines = max(map(len, titles))
  notes = max(_note(model, small) for model in models)
  top = margin + lines * lettering.height(font) + notes + GAP
  size = (left + len(models) * pitch[0] + margin, top + len(names) * pitch[1] + margin)
  base = Image.new('RGB', size, 'white')
  draw = ImageDraw.Draw(base)
  for i, (model, title) in enumerate(zip(models, titles)):
    x = left + i * pitch[0] + side / 2
    bottom = top - GAP - notes
    lettering.write(draw, (x, bottom - len(title) * lettering.height(font)), title, font, 'ma')
    _write_note(draw, (x, bottom), model, small, 'ma')
  if any(model.classes for model in models) or len(names) > 1:
    for i, name in enumerate(names):
      text = lettering.wrapped(name, font, left - 2 * margin, LINES)
      y = top + i * pitch[1] + (side - len(text) * lettering.height(font)) / 2
      lettering.write(draw, (left - margin, y), text, font, 'ra')
  affordable = MAX_ALL_PIXELS // (len(models) * len(names) * side**2)
  count = min(max(len(model.frames) for model in models), max(affordable, MIN_FRAMES))
  chosen = [model.snapshots(count) for model in models]
  pictures = []
  for k in range(count):
    canvas = base.copy()
    for i, model in enumerate(models):
      x = left + i * pitch[0]
      for j, row in enumerate(model.rows(names)):
        canvas.paste(_cell(model, chosen[i][k], row, side), (x, top + j * pitch[1]))
    pictures.append(np.asarray(canvas))
  return pictures


def _cell(model: Denoising, frame: int, row: int | None, side: int) -> Image.Image:
  if row is None:
    return Image.new('RGB', (side, side), (EMPTY,) * 3)
  image = resize(model.frames[frame, row], side, side)
  return Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (side, side, 3))))


def _side(models: Sequence[Denoising], least: int) -> int:
  """Returns the side of images in pixels: that of the largest, enlarged by a whole factor."""
  largest = max(max(model.frames.shape[2:4]) for model in models)
  return min(largest * math.ceil(least / largest), MAX_SIDE)


def _note(model: Denoising, font: ImageFont.FreeTypeFont) -> int:
  """Height of the line that says that a model has no classes."""
  return 0 if model.classes else lettering.height(font)


def _write_note(draw, place: tuple[float, float], model: Denoising, font, anchor: str) -> None:
  """Says that a model has no classes, if it has none."""
  if not model.classes:
    draw.text(place, UNCONDITIONAL, fill=GREY, font=font, anchor=anchor)
