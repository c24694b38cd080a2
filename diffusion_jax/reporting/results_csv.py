"""The results of runs as CSV: a row a result, with every number in full and everything it depends on."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.records import Record


def text(results: Sequence[Record]) -> str:
  """table.csv; its column `table` says which table of table.md it is of."""
  lines = [
    csv_line(number, record)
    for number, group in enumerate(of.by_protocol(results), 1)
    for record in group
  ]
  # The columns of each part together, also those that only later rows have.
  parts = [dict.fromkeys(name for line in lines for name in line[i]) for i in range(len(lines[0]))]
  file = io.StringIO()
  writer = csv.DictWriter(file, [name for part in parts for name in part], lineterminator='\n')
  writer.writeheader()
  for line in lines:
    flat = {name: value for part in line for name, value in part.items()}
    writer.writerow({n: _csv_cell(v) for n, v in flat.items()})
  return file.getvalue()


def csv_line(number: int, record: Record) -> list[dict[str, Any]]:
  """The parts of a row: what it is, metrics, settings, published numbers, protocol, samples."""
  of_samples = not record.is_reconstruction
  return [
    {
      'table': number,
      'kind': 'samples' if of_samples else 'reconstructions',
      'Model': record.model,
      'result': record.name,
      'run': record.run,
      'VAE?': ('yes' if record.latent else 'no') if of_samples else None,
      'CFG?': ('yes' if record.guided else 'no') if of_samples else None,
      'Backbone': record.backbone if of_samples else None,
    },
    dict(record.metrics),
    {f'{name} over seeds': value for name, value in record.deviation.items()},
    {
      'seeds': record.num_seeds,
      'N': record.protocol.get('num_samples'),
      'steps': record.samples.get('num_steps'),
      'cfg_scale': record.samples.get('cfg_scale') if record.num_classes else None,
      'parameters': record.parameters,
      'images/s': record.images_per_s,
      'published FID': record.published.fid or None,
      'published IS': record.published.inception_score or None,
      'published IS std': record.published.inception_score_std or None,
      'time': record.time,
    },
    {f'real.{name}': value for name, value in record.real.items()},
    {f'protocol.{name}': value for name, value in record.protocol.items()},
    {f'samples.{name}': value for name, value in record.samples.items()},
    {'warnings': ' '.join(record.warnings) or None},
  ]


def _csv_cell(value: Any) -> Any:
  return of.canonical(value) if isinstance(value, (Mapping, list, tuple)) else value
