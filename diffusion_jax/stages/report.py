"""--mode=report: puts all runs below a folder into tables, plots and a panel, from the files they wrote."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from diffusion_jax.config.schema import Report
from diffusion_jax.errors import DamagedError, InputError, Stop
from diffusion_jax.experiment import stored
from diffusion_jax.reporting import images, panel, plots, records, scatter
from diffusion_jax.reporting import results as tables
from diffusion_jax.reporting.curves import loss_plots, metric_plots, read_series
from diffusion_jax.reporting.panel import Denoising
from diffusion_jax.reporting.records import Record, natural
from diffusion_jax.reporting.records import Run as Found
from diffusion_jax.reporting.runs import denoising_of, read_json, read_result, records_of
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts
from diffusion_jax.usage import program

REPORT = 'report'  # The folder below the given one that is written, not searched.
INSIDE = {'checkpoints', 'samples', 'eval', 'previews', 'logs'}  # Folders of a run, not searched.
OUTPUTS = ('table.*', 'scatter*.*', 'curves-*.*', 'panel*.*')


def main(run: Run) -> None:
  """Writes DIR/report/ and prints the tables.

  Raises: InputError if nothing below DIR is a run, DamagedError if no result can be read.
  """
  workdir = run.workdir
  if not workdir.is_dir():
    raise InputError(f'--workdir={workdir}: no such folder; give the folder that holds the runs')
  if not hosts.is_first():
    return
  remarks: list[str] = []
  runs = collect(workdir, remarks.append)
  results = [record for found in runs for record in records_of(found)]
  looks = {found.path: number for number, found in enumerate(runs)}
  folder = workdir / REPORT
  folder.mkdir(exist_ok=True)
  title = f'{len(results)} results of {len(runs)} runs below {workdir.name}'
  texts = {'table.md': tables.markdown(title, results), 'table.csv': tables.csv_text(results)}
  for name, text in texts.items():
    files.write(folder / name, text)
  written = [
    *(folder / name for name in texts),
    *draw_scatter(folder, results, looks),
    *draw_curves(folder, runs, looks, remarks.append),
    *draw_panels(folder, runs, run.config.report, remarks.append),
  ]
  older = {path for pattern in OUTPUTS for path in folder.glob(pattern)} - set(written)
  remarks += [f'{path}: from an earlier report' for path in sorted(older)]
  print('\n'.join(line for line in (title, tables.apart(results)) if line) + '\n')
  print('\n\n'.join(table.text() for table in tables.result_tables(results)) + '\n')
  for remark in remarks:
    print(remark)
  print('written:')
  for path in written:
    print(f'  {path}')


def collect(workdir: Path, remark: Callable[[str], None]) -> list[Found]:
  """Reads every run with a readable result, by path; remarks what cannot be read.

  Raises: InputError if nothing below it is a run, DamagedError if no result can be read.
  """
  found, trained = [], []
  for folder in folders(workdir):
    if any((folder / 'eval').glob('*.json')):
      found.append(folder)
    elif (folder / 'metrics.jsonl').exists() or (folder / 'checkpoints').is_dir():
      trained.append(folder)
      remark(f'{folder}: not evaluated (no eval/*.json), so left out; --mode=evaluate does it')
  if not found:
    example = f'{program()} --workdir={trained[0] if trained else workdir / "quickstart"}'
    train = '' if trained else f'  {example} --config=quickstart\n'
    state = f'only trained, not evaluated: {", ".join(map(str, trained))}. ' if trained else ''
    raise InputError(
      f'--workdir={workdir}: no run below it. {state}A run is a folder, at any depth, with config.json '
      f'and eval/*.json; for example this makes one:\n{train}  {example} --mode=evaluate'
    )
  runs = [run for run in (read_run(folder, workdir, remark) for folder in found) if run]
  if not runs:
    raise DamagedError(
      f'{workdir}: no result can be read in {len(found)} runs; measure again with --mode=evaluate, or '
      f'see the files: {", ".join(map(str, found))}'
    )
  names = [run.name for run in runs]
  for number, run in enumerate(runs):
    if not run.name or names.count(run.name) > 1:
      name = f'{run.name} ({run.path})' if run.name else run.path
      runs[number] = dataclasses.replace(run, name=name)
  return sorted(runs, key=lambda run: natural(run.path))


def folders(workdir: Path) -> Iterator[Path]:
  """The folders with a config.json, through links, each once; those inside of a run are not searched."""
  for folder, below, _ in files.walk(workdir):
    is_run = (folder / 'config.json').is_file()
    skipped = (INSIDE if is_run else set()) | ({REPORT} if folder == workdir else set())
    below[:] = sorted(b for b in below if b not in skipped and not b.startswith('.'))
    if is_run:
      yield folder


def read_run(folder: Path, workdir: Path, remark: Callable[[str], None]) -> Found | None:
  """Reads a run, named as published; returns None with a remark if its config or no result can be read."""
  try:
    config = stored.load(folder)
  except (Stop, OSError) as error:
    remark(f'{error}; left out')
    return None
  results = {path.stem: read_result(path, remark) for path in (folder / 'eval').glob('*.json')}
  results = {stem: results[stem] for stem in sorted(results, key=natural) if results[stem]}
  data = read_json(folder / 'data.json', remark) or {}
  path = workdir.name if folder == workdir else folder.relative_to(workdir).as_posix()
  return (
    Found(config['published']['name'], folder, path, config, data, results) if results else None
  )


def draw_scatter(folder: Path, results: Sequence[Record], looks: Mapping[str, int]) -> list[Path]:
  """Draws scatter.png, or a scatter-TABLE.png for each table with FID and IS. Returns: the files."""
  groups, written = records.by_protocol(results), []
  for number, group in enumerate(groups, 1):
    figure = None if group[0].is_reconstruction else scatter.scatter(group, looks)
    if figure is not None:
      stem = 'scatter' if len(groups) == 1 else f'scatter-{number}'
      written += plots.save(figure, folder / stem)
  return written


def draw_curves(
  folder: Path, runs: Sequence[Found], looks: Mapping[str, int], remark: Callable[[str], None]
) -> list[Path]:
  """Draws curves-*.png for every metric measured in training. Returns: the files."""
  trained = []
  for found in runs:
    series, unreadable = read_series(found.folder / 'metrics.jsonl')
    if not series:
      remark(f'{found.folder}: no metrics.jsonl with numbers, so no curves are drawn')
    elif unreadable:
      remark(f'{found.folder / "metrics.jsonl"}: {unreadable} unreadable lines left out')
    trained.append((found.name, looks[found.path], found.config, series))
  figures = {'curves-loss': loss_plots(trained), **metric_plots(trained)}
  return [
    path
    for stem, axes in figures.items()
    if axes
    for path in plots.save(plots.curves(axes), folder / stem)
  ]


def draw_panels(
  folder: Path, runs: Sequence[Found], sizes: Report, remark: Callable[[str], None]
) -> list[Path]:
  """Draws panel*.png and panel*.gif, one pair for all models of the same data. Returns: the files."""
  groups: dict[tuple, list[tuple[str, Denoising]]] = {}
  for found in runs:
    is_sampled = not records.is_autoencoder(found.config)
    model = denoising_of(found, remark) if is_sampled else None
    if model is not None:
      labels = tuple(found.data.get('label_names') or ()) or found.data_name
      key = (labels, model.frames.shape[-1])
      groups.setdefault(key, []).append((found.data_name, model))
  written = []
  for named in groups.values():
    stem, models = 'panel', [model for _, model in named]
    if len(groups) > 1:
      stem += '-' + re.sub(r'[^\w-]+', '-', named[0][0])
      taken = [path.stem for path in written]
      others = (f'{stem}-{number}' for number in itertools.count(2))
      stem = next(s for s in itertools.chain([stem], others) if s not in taken)
    png, gif = folder / f'{stem}.png', folder / f'{stem}.gif'
    files.write_png(png, panel.picture(models, sizes.num_classes, sizes.num_snapshots))
    images.save_gif(gif, panel.animation(models, sizes.num_classes))
    written += [png, gif]
  return written
