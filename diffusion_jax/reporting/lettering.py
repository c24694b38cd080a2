"""Text on pictures: fonts, lines that fit, lines below each other."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import ImageFont

from diffusion_jax.reporting.tables import shortened


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
  """The font of a size in pixels: matplotlib's, which has accents and dashes; Pillow's own has neither."""
  import matplotlib

  return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), size)


def height(font: ImageFont.FreeTypeFont) -> int:
  """The height of a line."""
  return math.ceil(1.2 * font.size)


def widest(texts: Sequence[str], font: ImageFont.FreeTypeFont, limit: int) -> int:
  """The width of the widest text, `limit` at most."""
  return min(math.ceil(max(map(font.getlength, texts))), limit)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float, lines: int) -> list[str]:
  """The text in at most `lines` lines, broken after punctuation; the middle left out if it must."""
  for length in range(len(text), 1, -1):
    found = _broken(shortened(text, length), font.getlength, width)
    if len(found) <= lines:
      return found
  return [shortened(text, 1)]


def _broken(text: str, measure: Callable[[str], float], width: float) -> list[str]:
  lines = ['']
  for part in re.findall(r'[^\s/_,-]*[\s/_,-]*', text):
    if lines[-1] and measure((lines[-1] + part).rstrip()) > width:
      lines.append('')
    for character in part:
      if measure((lines[-1] + character).rstrip()) > width:
        lines.append('')
      lines[-1] += character
  return [line.strip() for line in lines if line.strip()] or ['']


def write(draw, place: tuple[float, float], lines: Sequence[str], font, anchor: str) -> None:
  """Lines from `place` downwards."""
  for i, line in enumerate(lines):
    y = place[1] + i * height(font)
    draw.text((place[0], y), line, fill='black', font=font, anchor=anchor)
