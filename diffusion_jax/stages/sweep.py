"""--mode=sweep: samples and evaluates every combination of --sweep=FIELD=V1,V2,... on one trained run.

Each combination, a cell, has an ordinary sample set and DIR/eval/NAME.json. What exists is not made again, so
the same command goes on after an interruption, and one with more values adds their cells. DIR/sweeps/NAME/
holds cells.csv and cells.md, rewritten after each cell, then the plots and the picture.
"""

import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_jax.config import sweep as naming
from diffusion_jax.config.sweep import Flags
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import agreement
from diffusion_jax.experiment.checks import check_data, check_devices, listed
from diffusion_jax.reporting import plots, sweep_grid, sweep_plots, sweep_tables
from diffusion_jax.reporting.records import Record
from diffusion_jax.reporting.records import Run as Found
from diffusion_jax.reporting.sweep_tables import Point
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts, lease
from diffusion_jax.sampling import sample_set, samples, sweep
from diffusion_jax.sampling.pictures import shown_indices
from diffusion_jax.sampling.sweep import Cell
from diffusion_jax.sampling.sweep_work import Work

SWEEPS = 'sweeps'  # The folder in DIR.
OUTPUTS = ('quality-*.*', 'fid-is*.*', 'samples.png')
BAR = '{desc} |{bar:20}| {percentage:3.0f}% [{elapsed}, about {remaining} left]'


def main(run: Run, *, flags: Flags) -> None:
  """Makes the results that are missing and writes DIR/sweeps/NAME/.

  Raises: InputError that lists every problem of every cell before the first is sampled.
  """
  experiment, workdir = run.experiment, run.workdir
  samples.require_diffusion(experiment)
  problems: list[str] = []
  axes = sweep.read_axes(flags, experiment.mapping, problems)
  check_devices(experiment)
  check_data(experiment)
  agreement.require_same_images(experiment.datasets)
  _ = experiment.sampler, experiment.decoder  # Read once, and before anything is made.
  cells = sweep.cells_of(experiment, workdir, axes, problems)
  refuse(problems)
  is_placed = not any(axis.field.startswith('mesh.') for axis in axes)
  work = Work(workdir, run.given if is_placed else None, flags.keep_samples)
  refuse(work.check(cells))
  name = flags.name or naming.name_of([axis.field for axis in axes])
  folder = workdir / SWEEPS / name
  with lease.held(folder / 'sweep.lease', f'sweeping {folder}'):
    results = measure(work, cells, folder, workdir)
    hosts.from_first(lambda: finish(workdir, folder, cells, results))


def refuse(problems: Sequence[str]) -> None:
  """Raises: InputError, on all processes, that lists the problems if there are any."""
  if problems:
    raise hosts.of_all(InputError(listed(list(dict.fromkeys(problems)))))


def measure(
  work: Work, cells: Sequence[Cell], folder: Path, workdir: Path
) -> list[Mapping[str, Any]]:
  """Measures the cells without a result, in order. Returns: the results of all."""
  results: list[Mapping[str, Any] | None] = [work.found(cell) for cell in cells]
  hosts.say(f'{folder}: {results.count(None)} of {len(cells)} cells to make')
  made: list[tuple[float, float]] = []  # Cost and seconds.
  for number, cell in enumerate(cells):
    result = results[number] or work.found(cell)  # Cells without a difference share a result.
    if not result:
      left = [other.cost for other, known in zip(cells[number:], results[number:]) if not known]
      tell(f'cell {number + 1} of {len(cells)}, {cell.label}', made, left)
      began = time.monotonic()
      result = work.measure(cell)
      made.append((cell.cost, time.monotonic() - began))
    work.tidy(cell, result)
    results[number] = result
    hosts.from_first(functools.partial(write_tables, folder, points_of(workdir, cells, results)))
  return results


def tell(what: str, made: Sequence[tuple[float, float]], left: Sequence[float]) -> None:
  """Prints a bar over the cells that this command makes, with the time that the others may take."""
  if hosts.is_first():
    seconds = remaining_seconds(made, left)
    rate = len(left) / seconds if seconds else None
    elapsed = sum(taken for _, taken in made)
    options = {'prefix': what, 'rate': rate, 'bar_format': BAR}
    line = tqdm.format_meter(len(made), len(made) + len(left), elapsed, **options)
    print(line, file=sys.stderr, flush=True)


def remaining_seconds(made: Sequence[tuple[float, float]], left: Sequence[float]) -> float | None:
  """How long cells of these costs may take: a constant and a multiple of the cost, fitted to those made."""
  if not made:
    return None
  from scipy.optimize import nnls

  costs, seconds = np.array(made).T
  unit = costs.mean()
  factors, _ = nnls(np.stack([np.ones_like(costs), costs / unit], axis=1), seconds)
  return float(factors[0] * len(left) + factors[1] * sum(left) / unit)


def write_tables(folder: Path, points: Sequence[Point]) -> None:
  """Writes cells.csv and cells.md."""
  groups = sweep_tables.comparable(points)
  files.write(folder / 'cells.csv', sweep_tables.csv_text(groups))
  title = f'Sweep {folder.name} of {points[0].record.run.name}'
  files.write(folder / 'cells.md', sweep_tables.markdown(title, groups))


def points_of(
  workdir: Path, cells: Sequence[Cell], results: Sequence[Mapping[str, Any] | None]
) -> list[Point]:
  """The cells that have a result, as what tables and plots show."""
  points = []
  for cell, result in zip(cells, results):
    if result:
      experiment = cell.experiment
      data = {'name': experiment.meta['name']}
      of_run = Found(workdir.name, workdir, workdir.name, experiment.mapping, data, {})
      record = Record(of_run, result['name'], result)
      points.append(Point(cell.values, cell.evaluations, record))
  return points


def finish(
  workdir: Path, folder: Path, cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]
) -> None:
  """Writes tables, plots and the picture, and prints the tables."""
  points = points_of(workdir, cells, results)
  groups = sweep_tables.comparable(points)
  write_tables(folder, points)
  written = [folder / 'cells.csv', folder / 'cells.md']
  for number, group in enumerate(groups, 1):
    ending = f'-{number}' if len(groups) > 1 else ''
    for stem, figure in sweep_plots.figures(group).items():
      written += plots.save(figure, folder / f'{stem}{ending}')
  layout = layout_of(workdir, cells, points)
  if layout.cells:
    written.append(folder / 'samples.png')
    files.write_png(written[-1], sweep_grid.picture(layout))
  print('\n\n'.join(table.text() for table in sweep_tables.tables(groups)) + '\n')
  older = {path for pattern in OUTPUTS for path in folder.glob(pattern)} - {*written}
  for path in sorted(older):
    print(f'{path}: from an earlier sweep of this name')
  print('written:')
  for path in written:
    print(f'  {path}')


def layout_of(workdir: Path, cells: Sequence[Cell], points: Sequence[Point]) -> sweep_grid.Layout:
  """The picture of all cells whose samples are there: columns are the second field, rows the others."""
  fields = list(cells[0].values)
  down, across = [*fields[:1], *fields[2:]], fields[1:2]
  rows, columns, shown = {}, {}, {}
  for cell, point in zip(cells, points, strict=True):
    row = rows.setdefault(point.label(down), len(rows))
    column = columns.setdefault(point.label(across), len(columns))
    folder = workdir / 'samples' / point.record.result['name']
    images = sample_set.read_some(folder, shown_indices(cell.experiment)).get('image')
    if images is not None:
      shown[row, column] = sweep_grid.Shown(images, sweep_tables.note(point))
  return sweep_grid.Layout(title_of(cells, len(columns)), list(rows), list(columns), shown)


def title_of(cells: Sequence[Cell], columns: int) -> str:
  """What the cells of the picture share: the noise and the classes, where no swept field changes them."""
  first = cells[0].experiment
  chosen = {
    (each.config.sample.seed, *each.sample_labels(shown_indices(each)).tolist())
    for each in (cell.experiment for cell in cells)
  }
  if len(chosen) > 1:
    return ''
  labels = first.sample_labels(shown_indices(first))[: sweep_grid.BLOCK if columns > 1 else None]
  names = [first.label_names[label] for label in labels] if first.config.num_classes else []
  classes = f': {", ".join(dict.fromkeys(names))}' if names else ''
  return f'The same noise{" and classes" if names else ""} in every cell{classes}'
