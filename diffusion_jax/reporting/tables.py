"""Tables of text for the terminal."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Columns as wide as needed, the first to the left and the others to the right."""
  lines = [list(header), *map(list, rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(header))]

  def text(line):
    first, *others = line
    return '  '.join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:]))])

  return '\n'.join([text(lines[0]), '  '.join('-' * w for w in widths), *map(text, lines[1:])])


def quantity(value: float, unit: str = '') -> str:
  """A number with a metric prefix and three digits: 2.93 M."""
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'.rstrip()
