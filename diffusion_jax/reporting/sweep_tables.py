"""The cells of a sweep as tables: what was swept, what a sample cost, how good the samples are."""

import csv
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.config.sweep import key, shown
from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.records import Record
from diffusion_jax.reporting.tables import NOTHING, Table, cell, escaped, quantity

# How values of some fields are called; others as in 'ddim eta 0.5'.
WORDS = {'sample.num_steps': '{} steps', 'sample.cfg_scale': 'guidance {}'}
COST = ('evaluations', 's/image')


@dataclasses.dataclass(frozen=True, eq=False)
class Point:
  """A measured cell: swept field -> value, evaluations of the network for a sample, and the result."""

  values: Mapping[str, Any]
  evaluations: float
  record: Record

  @property
  def seconds(self) -> float | None:
    """Measured seconds an image, compiling aside; None if that was not measured."""
    speed = self.record.result['images_per_s']
    return 1 / speed if speed else None

  def label(self, fields: Sequence[str]) -> str:
    """The values of these fields in words: 'ddim, 10 steps'."""
    return ', '.join(words(field, self.values[field]) for field in fields)


def words(field: str, value: Any) -> str:
  """A field's value in words: 'ddim', '10 steps', 'ddim eta 0.5'."""
  text = shown(value)
  if field.endswith('.name'):
    return text
  called = re.sub(r'[._]', ' ', key(field))
  return WORDS.get(field, f'{called} {{}}').format(text)


def note(point: Point) -> str:
  """What a cell cost and its first distance, or first metric: '20 evaluations, FID 9.7'."""
  metric = quality_metrics([point])[0]
  title = (
    'FID'
    if metric == of.FRECHET and point.record.features == 'inception'
    else metric.split('_')[-1]
  )
  value = point.record.value(metric)
  measured = f', {title} {value:.3g}' if value is not None else ''
  return f'{point.evaluations:,.6g} evaluations{measured}'


def quality_metrics(group: Sequence[Point]) -> list[str]:
  """The first distance that was measured, and the inception score; the first metric if there is neither."""
  names = of.metric_names([point.record for point in group])
  distances = [name for name in names if of.direction(name) < 0][:1]
  return [*distances, *(name for name in names if name == of.SCORE)] or names[:1]


def comparable(points: Sequence[Point]) -> list[list[Point]]:
  """Points of one protocol together, in the order of the first of each."""
  groups = of.by_protocol([point.record for point in points])
  found = {id(point.record): point for point in points}
  return [[found[id(record)] for record in group] for group in groups]


def real(points: Sequence[Point]) -> Mapping[str, Any]:
  """The metrics of real training images under the protocol of the points; empty if not measured."""
  found = (point.record.result.get('real_baseline') for point in points)
  return next((each['metrics'] for each in found if each), {})


def tables(groups: Sequence[Sequence[Point]]) -> list[Table]:
  """A table for each protocol."""
  numbers = [f'{i}. ' for i in range(1, len(groups) + 1)] if len(groups) > 1 else ['']
  return [_table(number, group) for number, group in zip(numbers, groups)]


def markdown(title: str, groups: Sequence[Sequence[Point]]) -> str:
  """cells.md."""
  return '\n'.join([f'# {escaped(title)}\n', *(table.markdown() for table in tables(groups))])


def _table(number: str, group: Sequence[Point]) -> Table:
  results = [point.record for point in group]
  fields, metrics = list(group[0].values), of.metric_names(results)
  titles = [of.metric_title(metric, results[0].features) for metric in metrics]
  rows = [
    [
      *(shown(value) for value in point.values.values()),
      f'{point.evaluations:,.6g}',
      quantity(point.seconds) if point.seconds else NOTHING,
      *(cell(point.record.metrics, m, point.record.result['deviation']) for m in metrics),
    ]
    for point in group
  ]
  baseline = real(group)
  if baseline:
    blank = [''] * (len(fields) + len(COST) - 1)
    rows.append(['real training images', *blank, *(cell(baseline, m, {}) for m in metrics)])
  notes = [
    'evaluations: of the network, for one sample; two a call where guidance acts. s/image: measured, without '
    'compiling.'
  ]
  if any(metric + of.STD in result.metrics for result in results for metric in metrics):
    notes.append('±: over the splits or subsets of one sample set.')
  if any(result.result['deviation'] for result in results):
    notes.append('Mean over sample sets of different seeds; in brackets the deviation over these.')
  notes += dict.fromkeys(warning for result in results for warning in result.result['warnings'])
  title, protocol = number + of.headline(results), of.protocol_words(results)
  return Table(title, protocol, [*fields, *COST, *titles], rows, notes)


def csv_text(groups: Sequence[Sequence[Point]]) -> str:
  """cells.csv: a row a cell, every number in full. Column `table`: which table of cells.md it is of."""
  lines = [_csv_line(number, point) for number, group in enumerate(groups, 1) for point in group]
  columns = dict.fromkeys(name for part in zip(*lines) for each in part for name in each)
  file = io.StringIO()
  writer = csv.DictWriter(file, columns, lineterminator='\n')
  writer.writeheader()
  for line in lines:
    writer.writerow({name: value for part in line for name, value in part.items()})
  return file.getvalue()


def _csv_line(number: int, point: Point) -> list[dict[str, Any]]:
  """The parts of a row: what was swept, what it cost, how good it is, what it was measured on."""
  record = point.record
  return [
    {'table': number},
    {field: shown(v) if isinstance(v, (tuple, bool)) else v for field, v in point.values.items()},
    {
      'evaluations': point.evaluations,
      'seconds_per_image': point.seconds,
      'images_per_s': record.result['images_per_s'],
    },
    dict(record.metrics),
    {f'{name} over seeds': value for name, value in record.result['deviation'].items()},
    {
      'samples': record.name,
      'num_samples': record.protocol.get('num_samples'),
      'seeds': len(record.result['seeds']),
      'step': record.samples.get('step'),
    },
  ]
