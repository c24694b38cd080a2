"""The table at the end of an evaluation: one work directory's results under one protocol."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.reporting.tables import table


def results_table(folder: Path, result: Mapping[str, Any]) -> str:
  """This result, the others in the folder under the same protocol, the real images; its warnings."""
  others = [read_result(path) for path in sorted(folder.glob('*.json'))]
  comparable = [other for other in others if other.get('protocol') == result['protocol']]
  names = [name for name in result['metrics'] if not name.endswith('_std')]
  rows = [
    [other['name'], *cells(other, names), speed(other['images_per_s'])] for other in comparable
  ]
  if 'real_baseline' in result:
    rows.append(['real training images', *cells(result['real_baseline'], names), ''])
  protocol = result['protocol']
  size = f'{protocol["reference_size"]:,} images' if protocol['reference_size'] else 'statistics'
  title = (
    f'{protocol["num_samples"]:,} samples against {size} ({protocol["reference"]}), '
    f'features: {protocol["features"]} {protocol["features_digest"][:8]}, {protocol["backend"]}'
  )
  header = ['samples', *(name.replace('_', ' ') for name in names), 'images/s']
  warnings = ''.join(f'\nwarning: {text}' for text in result.get('warnings', ()))
  return f'\n{title}\n\n{table(header, rows)}\n{warnings}'


def read_result(path: Path) -> dict[str, Any]:
  """A stored result, or nothing if it cannot be read, which is printed."""
  try:
    content = json.loads(path.read_text())
  except ValueError:
    content = None
  if isinstance(content, dict) and isinstance(content.get('metrics'), dict):
    return content
  print(f'{path}: not a result, left out of the table')
  return {}


def cells(result: Mapping[str, Any], names: Sequence[str]) -> list[str]:
  """Each metric with its deviation where there is one: over seeds, or its own."""
  metrics, over_seeds = result['metrics'], result.get('deviation', {})
  deviations = [over_seeds.get(name, metrics.get(f'{name}_std')) for name in names]
  return [
    ('' if n not in metrics else f'{metrics[n]:.4g}') + (f' +- {d:.2g}' if d is not None else '')
    for n, d in zip(names, deviations)
  ]


def speed(images_per_s: float | None) -> str:
  """Sampling speed, compiling aside."""
  return f'{images_per_s:.1f}' if images_per_s else ''
