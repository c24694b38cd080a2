"""Tables of text: for the terminal, and the results of runs as Markdown."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.records import Record

NOTHING = '–'
# Of a result's `samples`: what has a column of its own, and what says nothing to a reader.
SHOWN = ('sampler', 'num_steps', 'cfg_scale')
INTERNAL = ('parameters', 'data', 'autoencoder', 'latent_shift', 'latent_scale')
LONGEST = 30  # Characters of a setting in a cell; the CSV has it whole.


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
  header: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  notes: tuple[str, ...]

  def text(self) -> str:
    """For the terminal."""
    notes = ''.join(f'\n- {note}' for note in self.notes)
    return f'{self.title}\n{self.protocol}\n\n{table(self.header, self.rows)}\n{notes}'

  def markdown(self) -> str:
    """As GitHub shows it; the first column to the left, the others to the right."""
    lines = [self.header, ('---', *('---:' for _ in self.header[1:]))]
    lines += [tuple(map(escaped, row)) for row in self.rows]
    lines[0] = tuple(map(escaped, self.header))
    body = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    notes = '\n'.join(f'- {escaped(note)}' for note in self.notes)
    return f'## {escaped(self.title)}\n\n{escaped(self.protocol)}\n\n{body}\n\n{notes}\n'


def escaped(text: str) -> str:
  """Text in which Markdown sees no markup."""
  text = ' '.join(text.split())
  return re.sub(r'([\\|*`<>\[\]~$&]|(?<![^\W_])_|_(?![^\W_]))', r'\\\1', text)


def result_tables(results: Sequence[Record]) -> list[Table]:
  """One for every protocol: samples first, then reconstructions of autoencoders."""
  groups = of.by_protocol(results)
  numbers = [f'{i}. ' for i in range(1, len(groups) + 1)] if len(groups) > 1 else ['']
  return [_table(number, group) for number, group in zip(numbers, groups)]


def apart(results: Sequence[Record]) -> str:
  """Why there are several tables, or nothing."""
  groups = of.by_protocol(results)
  if len(groups) < 2:
    return ''
  differing = ', '.join(name.replace('_', ' ') for name in of.differences(groups))
  differing = f' They differ in: {differing}.' if differing else ''
  return (
    f'{len(groups)} tables, because the results were measured by {len(groups)} protocols: a number of '
    f'one table is not comparable with a number of another.{differing}'
  )


def markdown(title: str, results: Sequence[Record]) -> str:
  """table.md."""
  parts = [f'# {escaped(title)}\n', escaped(apart(results)) + '\n' if apart(results) else '']
  return '\n'.join(p for p in [*parts, *(t.markdown() for t in result_tables(results))] if p)


def _table(number: str, group: Sequence[Record]) -> Table:
  columns = _columns(group)
  rows = [tuple(cell(record) for _, cell in columns) for record in group]
  rows += _real_rows(group, [title for title, _ in columns])
  return Table(
    number + of.headline(group),
    of.protocol_words(group),
    tuple(title for title, _ in columns),
    tuple(rows),
    tuple(_notes(group)),
  )


def _columns(group: Sequence[Record]) -> list[tuple[str, Callable[[Record], str]]]:
  """Titles, and what each says of a record."""
  first, metrics = group[0], of.metric_names(group)
  measured = [
    (title, lambda r, m=metric: cell(r.metrics, m, r.deviation))
    for metric, title in zip(metrics, _metric_titles(group))
  ]
  head = [('Model', lambda r: r.label)]
  tail = [('N', lambda r: of.count(r.protocol.get('num_samples')))]
  if not first.is_reconstruction:
    head += [
      ('VAE?', lambda r: 'yes' if r.latent else 'no'),
      ('CFG?', lambda r: 'yes' if r.guided else 'no'),
      ('Backbone', lambda r: r.backbone),
    ]
    tail += [
      ('Sampler', lambda r: sampler(r.samples)),
      ('Steps', lambda r: of.count(r.samples.get('num_steps'), NOTHING)),
      ('cfg_scale', lambda r: setting(r.samples.get('cfg_scale') if r.num_classes else None)),
    ]
  tail += [
    ('Parameters', lambda r: of.count(r.parameters, NOTHING)),
    ('Images/s', lambda r: f'{r.images_per_s:.1f}' if r.images_per_s else NOTHING),
  ]
  if any(record.num_seeds > 1 for record in group):
    tail.append(('Seeds', lambda r: str(r.num_seeds)))
  tail += [(name, lambda r, n=name: setting(r.samples.get(n))) for name in _settings(group)[1]]
  # FID and IS, the published ones beside them, then the other metrics.
  usual = sum(name in (of.FRECHET, of.SCORE) for name in metrics)
  published = []
  if any(map(of.has_published, group)):
    published = [
      ('published FID', lambda r: f'{r.published.fid:.1f}' if r.published.fid else NOTHING),
      ('published IS', lambda r: _published_score(r)),
    ]
  return head + measured[:usual] + published + measured[usual:] + tail


def _metric_titles(group: Sequence[Record]) -> list[str]:
  first = group[0]
  return [
    of.metric_title(name, first.features, is_reconstruction=first.is_reconstruction)
    for name in of.metric_names(group)
  ]


def _real_rows(group: Sequence[Record], titles: Sequence[str]) -> list[tuple[str, ...]]:
  """What real images get, once."""
  rows = {}
  for record in group:
    if record.real:
      cells = dict.fromkeys(titles, '')
      names = zip(_metric_titles(group), of.metric_names(group))
      cells |= {title: cell(record.real, name, {}) for title, name in names}
      cells |= {'Model': 'real training images', 'N': of.count(record.real_count)}
      rows[tuple(cells.values())] = None
  return list(rows)


def _settings(group: Sequence[Record]) -> tuple[dict[str, Any], list[str]]:
  """What all samples have in common, and the names of what differs."""
  names = dict.fromkeys(name for record in group for name in record.samples)
  names = [n for n in names if n not in SHOWN + INTERNAL and not n.startswith('sampler.')]
  differing = [n for n in names if len({of.canonical(r.samples.get(n)) for r in group}) > 1]
  return {n: group[0].samples[n] for n in names if n not in differing}, differing


def _notes(group: Sequence[Record]) -> list[str]:
  first, metrics, notes = group[0], of.metric_names(group), []
  common = ', '.join(f'{n} {setting(v)}' for n, v in _settings(group)[0].items())
  notes += [f'All rows: {common}.'] if common else []
  if any(name + of.STD in record.metrics for record in group for name in metrics):
    notes.append('±: over the splits or subsets of one sample set.')
  if any(record.deviation for record in group):
    notes.append('Mean over sample sets of different seeds; in brackets the deviation over these.')
  if not first.is_reconstruction and not all(record.num_classes for record in group):
    notes.append(f'cfg_scale {NOTHING}: the model has no classes.')
  if any(map(of.has_published, group)):
    notes.append(published_note(first.protocol))
  for warning in dict.fromkeys(w for record in group for w in record.warnings):
    models = [record.label for record in group if warning in record.warnings]
    notes.append(f'{warning} ({"all rows" if len(models) == len(group) else ", ".join(models)})')
  return notes


def published_note(protocol: Mapping[str, Any]) -> str:
  """What the published columns are worth beside results of this protocol."""
  if of.is_like_published(protocol):
    return (
      'Published FID and IS (PyTorch), for orientation: as many samples and Inception features, but '
      'other reference images.'
    )
  return (
    f'Published FID and IS (PyTorch), for orientation: another protocol ({of.PUBLISHED_SAMPLES:,} '
    'samples, Inception features, other reference images), not comparable with this table.'
  )


def cell(metrics: Mapping[str, Any], name: str, deviation: Mapping[str, Any]) -> str:
  """'9.014 ± 0.25 (± 0.03)': the value, its deviation over splits, and that over seeds."""
  if name not in metrics:
    return NOTHING
  text = number(metrics[name])
  if of.is_number(metrics.get(name + of.STD)):
    text += f' ± {_deviation(metrics[name + of.STD])}'
  return text + (f' (± {_deviation(deviation[name])})' if of.is_number(deviation.get(name)) else '')


def number(value: Any) -> str:
  """Four digits, zeros too; all of the integer part."""
  if not of.is_number(value):
    return setting(value)
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:#.4g}'.removesuffix('.')


def _deviation(value: float) -> str:
  return f'{value:#.2g}'.removesuffix('.')


def setting(value: Any) -> str:
  """A setting in a cell."""
  if value is None:
    return NOTHING
  return shortened(f'{value:g}' if isinstance(value, float) else str(value), LONGEST)


def sampler(samples: Mapping[str, Any]) -> str:
  """'ddim, eta 0'."""
  if 'sampler' not in samples:
    return NOTHING
  options = [
    f'{name.removeprefix("sampler.")} {setting(value)}'
    for name, value in samples.items()
    if name.startswith('sampler.')
  ]
  return ', '.join([str(samples['sampler']), *options])


def _published_score(record: Record) -> str:
  published = record.published
  if not published.inception_score:
    return NOTHING
  return f'{published.inception_score:.2f} ± {published.inception_score_std:.2f}'
