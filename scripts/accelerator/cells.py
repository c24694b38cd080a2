"""Tables of the report, and what stands in their cells."""

from collections.abc import Sequence

from diffusion_jax.reporting.tables import markdown_table
from diffusion_jax.runtime import chips


def peak_of(device: str) -> float | None:
  """Dense bfloat16 FLOP/s on paper, or None for a device that the table of chips does not have."""
  found = chips.published(device, '', 'bfloat16')
  return found and found.flops_per_s


def table(header: Sequence[str], rows: list[list[str]]) -> str:
  """A Markdown table, numbers to the right."""
  words = [i for i, name in enumerate(header) if name in ('', 'check', 'what')]
  return markdown_table(header, rows, left=words)


def number(value: float | None, scale: float = 1.0) -> str:
  """Three digits, or all before the point; a dash for None."""
  if value is None:
    return '–'
  value = value / scale
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def share(part: float, whole: float | None) -> str:
  """Per cent."""
  return f'{100 * part / whole:.1f}%' if whole else '–'


def one_line(text: str) -> str:
  """The first line of an error, short, with nothing that would end a cell."""
  return text.strip().splitlines()[0][:200].replace('|', '/')
