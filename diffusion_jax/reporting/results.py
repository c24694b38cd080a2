"""The results of runs as tables: at the end of an evaluation, and a report's as Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.records import Record
from diffusion_jax.reporting.runs import read_result
from diffusion_jax.reporting.tables import NOTHING, Table, cell, escaped, setting, speed, table

# Entries of a result's `samples` that have a column of their own, and those that say nothing to a reader.
SHOWN = ('sampler', 'num_steps', 'cfg_scale')
INTERNAL = ('parameters', 'data', 'autoencoder', 'latent_shift', 'latent_scale')
REAL = 'real training images'
BACKBONES = {'dit': 'DiT', 'unet': 'UNet'}
# The kind of model that made samples: title of a column -> its cell.
KIND = {
  'VAE?': lambda r: 'yes' if r.run.config['space'] == 'latent' else 'no',
  'CFG?': lambda r: 'no' if r.cfg_scale == 1 else 'yes',
  'Backbone': lambda r: BACKBONES.get(r.run.config['model']['name'], r.run.config['model']['name']),
}


def evaluation_table(folder: Path, result: Mapping[str, Any]) -> str:
  """A result, the others of its folder under the same protocol, the real images; its warnings."""
  protocol, names = result['protocol'], [n for n in result['metrics'] if not n.endswith(of.STD)]
  found = [read_result(path, print) for path in sorted(folder.glob('*.json'))]
  lines = [
    (other['name'], other, speed(other['images_per_s']))
    for other in found
    if other and other['protocol'] == protocol
  ]
  if 'real_baseline' in result:
    lines.append((REAL, result['real_baseline'], ''))
  rows = [
    [title, *(cell(line['metrics'], n, line.get('deviation') or {}) for n in names), images_per_s]
    for title, line, images_per_s in lines
  ]
  size = f'{protocol["reference_size"]:,} images' if protocol['reference_size'] else 'statistics'
  title = (
    f'{protocol["num_samples"]:,} samples against {size} ({protocol["reference"]}), '
    f'features: {protocol["features"]} {protocol["features_digest"][:8]}, {protocol["backend"]}'
  )
  header = ['samples', *(name.replace('_', ' ') for name in names), 'images/s']
  warnings = ''.join(f'\nwarning: {text}' for text in result['warnings'])
  return f'\n{title}\n\n{table(header, rows)}\n{warnings}'


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
  header = [title for title, _ in columns]
  rows = [[text(record) for _, text in columns] for record in group]
  title, words = number + of.headline(group), of.protocol_words(group)
  return Table(title, words, header, rows + _real_rows(group, header), _notes(group))


def _columns(group: Sequence[Record]) -> list[tuple[str, Callable[[Record], str]]]:
  """Titles, and what each says of a record."""
  first, metrics = group[0], of.metric_names(group)
  measured = [
    (title, lambda r, m=metric: cell(r.metrics, m, r.result['deviation']))
    for metric, title in zip(metrics, _metric_titles(group))
  ]
  head = [('Model', lambda r: r.label)]
  tail = [('N', lambda r: of.count(r.protocol.get('num_samples')))]
  if not first.is_reconstruction:
    head += KIND.items()
    tail += [
      ('Sampler', lambda r: sampler(r.samples)),
      ('Steps', lambda r: of.count(r.samples.get('num_steps'), NOTHING)),
      ('cfg_scale', lambda r: setting(_guidance(r))),
    ]
  tail += [
    ('Parameters', lambda r: of.count(r.result['parameters'], NOTHING)),
    ('Images/s', lambda r: speed(r.result['images_per_s'])),
  ]
  if any(len(record.result['seeds']) > 1 for record in group):
    tail.append(('Seeds', lambda r: str(len(r.result['seeds']))))
  tail += [(name, lambda r, n=name: setting(r.samples.get(n))) for name in _settings(group)[1]]
  # FID and IS, the published ones beside them, then the other metrics.
  usual = sum(name in (of.FRECHET, of.SCORE) for name in metrics)
  published = []
  if any(map(of.has_published, group)):
    published = [
      ('published FID', lambda r: _published_fid(r.run.published['fid'])),
      ('published IS', lambda r: _published_score(r.run.published)),
    ]
  return head + measured[:usual] + published + measured[usual:] + tail


def _metric_titles(group: Sequence[Record]) -> list[str]:
  features, is_made = group[0].features, group[0].is_reconstruction
  names = of.metric_names(group)
  return [of.metric_title(name, features, is_reconstruction=is_made) for name in names]


def _real_rows(group: Sequence[Record], titles: Sequence[str]) -> list[list[str]]:
  """Returns the row of the real images, once."""
  names, rows = list(zip(_metric_titles(group), of.metric_names(group))), []
  for record in group:
    real = record.result.get('real_baseline')
    if not real:
      continue
    cells = {title: cell(real['metrics'], name, {}) for title, name in names}
    cells |= {'Model': REAL, 'N': of.count(real['num_images'])}
    row = [cells.get(title, '') for title in titles]
    if row not in rows:
      rows.append(row)
  return rows


def _settings(group: Sequence[Record]) -> tuple[dict[str, Any], list[str]]:
  """Returns the settings that all samples share, and the names of those that differ."""
  names = dict.fromkeys(name for record in group for name in record.samples)
  names = [n for n in names if n not in SHOWN + INTERNAL and not n.startswith('sampler.')]
  differing = [n for n in names if len({of.canonical(r.samples.get(n)) for r in group}) > 1]
  return {n: group[0].samples[n] for n in names if n not in differing}, differing


def _notes(group: Sequence[Record]) -> list[str]:
  first, metrics = group[0], of.metric_names(group)
  common = ', '.join(f'{n} {setting(v)}' for n, v in _settings(group)[0].items())
  notes = [f'All rows: {common}.'] if common else []
  if any(name + of.STD in record.metrics for record in group for name in metrics):
    notes.append('±: over the splits or subsets of one sample set.')
  if any(record.result['deviation'] for record in group):
    notes.append('Mean over sample sets of different seeds; in brackets the deviation over these.')
  if not first.is_reconstruction and not all(record.run.config['num_classes'] for record in group):
    notes.append(f'cfg_scale {NOTHING}: the model has no classes.')
  if any(map(of.has_published, group)):
    notes.append(published_note(first.protocol))
  for warning in dict.fromkeys(w for record in group for w in record.result['warnings']):
    models = [record.label for record in group if warning in record.result['warnings']]
    notes.append(f'{warning} ({"all rows" if len(models) == len(group) else ", ".join(models)})')
  return notes


def published_note(protocol: Mapping[str, Any]) -> str:
  """Says how the published columns compare with results of this protocol."""
  if of.is_like_published(protocol):
    return (
      'Published FID and IS (PyTorch), for orientation: as many samples and Inception features, but '
      'other reference images.'
    )
  return (
    f'Published FID and IS (PyTorch), for orientation: another protocol ({of.PUBLISHED_SAMPLES:,} '
    'samples, Inception features, other reference images), not comparable with this table.'
  )


def sampler(samples: Mapping[str, Any]) -> str:
  """'ddim, eta 0'."""
  options = [
    f'{name.removeprefix("sampler.")} {setting(value)}'
    for name, value in samples.items()
    if name.startswith('sampler.')
  ]
  return ', '.join([str(samples['sampler']), *options]) if 'sampler' in samples else NOTHING


def _published_fid(fid: float) -> str:
  return f'{fid:.1f}' if fid else NOTHING


def _published_score(published: Mapping[str, Any]) -> str:
  score = published['inception_score']
  return f'{score:.2f} ± {published["inception_score_std"]:.2f}' if score else NOTHING


def _guidance(record: Record) -> float | None:
  """The guidance scale of a model with classes."""
  return record.samples.get('cfg_scale') if record.run.config['num_classes'] else None


def csv_text(results: Sequence[Record]) -> str:
  """table.csv: a row a result, every number in full and all that it depends on.

  Its column `table` says which table of table.md a row is of.
  """
  groups = enumerate(of.by_protocol(results), 1)
  lines = [_csv_line(number, record) for number, group in groups for record in group]
  # The columns of each part together, also those that only later rows have.
  columns = dict.fromkeys(name for part in zip(*lines) for each in part for name in each)
  file = io.StringIO()
  writer = csv.DictWriter(file, columns, lineterminator='\n')
  writer.writeheader()
  for line in lines:
    writer.writerow({n: _csv_cell(value) for part in line for n, value in part.items()})
  return file.getvalue()


def _csv_line(number: int, record: Record) -> list[dict[str, Any]]:
  """The parts of a row: what it is, metrics, settings, published numbers, protocol, samples."""
  run, result, published = record.run, record.result, record.run.published
  made = 'reconstructions' if record.is_reconstruction else 'samples'
  real = result.get('real_baseline', {}).get('metrics', {})
  return [
    {
      'table': number,
      'kind': made,
      'Model': run.name,
      'result': record.name,
      'run': run.path,
      **{title: None if record.is_reconstruction else text(record) for title, text in KIND.items()},
    },
    record.metrics,
    {f'{name} over seeds': value for name, value in result['deviation'].items()},
    {
      'seeds': len(result['seeds']),
      'N': record.protocol.get('num_samples'),
      'steps': record.samples.get('num_steps'),
      'cfg_scale': _guidance(record),
      'parameters': result['parameters'],
      'images/s': result['images_per_s'],
      'published FID': published['fid'] or None,
      'published IS': published['inception_score'] or None,
      'published IS std': published['inception_score_std'] or None,
      'time': result['time'],
    },
    {f'real.{name}': value for name, value in real.items()},
    {f'protocol.{name}': value for name, value in record.protocol.items()},
    {f'samples.{name}': value for name, value in record.samples.items()},
    {'warnings': ' '.join(result['warnings']) or None},
  ]


def _csv_cell(value: Any) -> Any:
  return of.canonical(value) if isinstance(value, (Mapping, list, tuple)) else value
