"""Tables of text, for the terminal and as Markdown, and what stands in their cells."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.reporting.records import STD, is_number

NOTHING = '–'
LONGEST = 30  # Characters of a setting in a cell; the CSV has it whole.


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns as wide as needed, the first to the left and the others to the right."""
  widths = [max(map(len, column)) for column in zip(header, *rows)]

  def text(line):
    sides = (str.ljust, *[str.rjust] * len(header))
    return '  '.join(side(c, width) for side, c, width in zip(sides, line, widths))

  return '\n'.join(map(text, [header, ['-' * width for width in widths], *rows]))


def markdown_table(
  header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
  """Formats a Markdown table; columns are aligned to the right, those of these numbers to the left."""
  sides = ['---' if i in left else '---:' for i in range(len(header))]
  return '\n'.join(f'| {" | ".join(line)} |' for line in (header, sides, *rows))


def quantity(value: float, unit: str = '') -> str:
  """A number with a metric prefix and three digits: 2.93 M."""
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'.rstrip()


def shortened(text: str, length: int) -> str:
  """At most `length` characters, the middle left out: the ends are what tells names apart."""
  if len(text) <= length:
    return text
  return f'{text[: (length - 1) // 2]}…{text[len(text) - length // 2 :]}'


@dataclasses.dataclass(frozen=True)
class Table:
  """Comparable results: a title, their protocol in words, cells, and what a reader must know."""

  title: str
  protocol: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  notes: Sequence[str]

  def text(self) -> str:
    """For the terminal."""
    notes = ''.join(f'\n- {note}' for note in self.notes)
    return f'{self.title}\n{self.protocol}\n\n{table(self.header, self.rows)}\n{notes}'

  def markdown(self) -> str:
    """Formats the table as Markdown."""
    header, *rows = ([escaped(cell) for cell in line] for line in (self.header, *self.rows))
    notes = '\n'.join(f'- {escaped(note)}' for note in self.notes)
    head = f'## {escaped(self.title)}\n\n{escaped(self.protocol)}'
    return f'{head}\n\n{markdown_table(header, rows)}\n\n{notes}\n'


def escaped(text: str) -> str:
  """Text in which Markdown sees no markup."""
  text = ' '.join(text.split())
  return re.sub(r'([\\|*`<>\[\]~$&]|(?<![^\W_])_|_(?![^\W_]))', r'\\\1', text)


def cell(metrics: Mapping[str, Any], name: str, deviation: Mapping[str, Any]) -> str:
  """'9.014 ± 0.25 (± 0.03)': the value, its deviation over splits, and that over seeds."""
  if name not in metrics:
    return NOTHING
  text = number(metrics[name])
  if is_number(metrics.get(name + STD)):
    text += f' ± {_deviation(metrics[name + STD])}'
  return text + (f' (± {_deviation(deviation[name])})' if is_number(deviation.get(name)) else '')


def number(value: Any) -> str:
  """Four digits, zeros too; all of the integer part."""
  if not is_number(value):
    return setting(value)
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:#.4g}'.removesuffix('.')


def _deviation(value: float) -> str:
  return f'{value:#.2g}'.removesuffix('.')


def setting(value: Any) -> str:
  """A setting in a cell."""
  if value is None:
    return NOTHING
  return shortened(f'{value:g}' if isinstance(value, float) else str(value), LONGEST)


def speed(images_per_s: float | None) -> str:
  """Images a second in a cell."""
  return f'{images_per_s:.1f}' if images_per_s else NOTHING
