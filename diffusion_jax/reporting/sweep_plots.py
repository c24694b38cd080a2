"""Plots of a sweep: quality against evaluations of the network, seconds or a field, and FID against IS."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_jax.config.sweep import key, shown
from diffusion_jax.reporting import plots, scatter, sweep_tables
from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.plots import NORMAL, SMALL, plain, towards
from diffusion_jax.reporting.sweep_tables import Point

EVALUATIONS = 'quality-evaluations'
STEPS, GUIDANCE = 'sample.num_steps', 'sample.cfg_scale'
REAL = 'real training images'
NEAR = 4.0  # Real images are drawn up to this factor beside the points, so that these stay apart.
MOST_NAMED = 30  # Points with a text.
Lines = Mapping[str, Sequence[Point]]  # Name -> points, in the order in which they may be joined.


@dataclasses.dataclass(frozen=True)
class Across:
  """The x axis of a plot: its name, the value of a point or None, the field that is written beside points.

  is_joined: whether a line joins the points. is_log: whether the axis is logarithmic.
  """

  name: str
  value: Callable[[Point], float | None]
  beside: str = ''
  is_joined: bool = True
  is_log: bool = True


def figures(group: Sequence[Point]) -> dict[str, Any]:
  """The figures of comparable points by the stems of their files; those that have something to show."""
  varied = _varied(group)
  found = {}
  for stem, across in _axes(varied).items():
    placed = [point for point in group if across.value(point) is not None]
    if placed:
      found[stem] = _quality(lines_along(placed, varied), across)
  guidance = _guidance(group)
  return {**found, 'fid-is': guidance} if guidance else found


def _axes(varied: str) -> dict[str, Across]:
  """The x axes by the stems of files. varied: the field along which points form a line."""
  along_steps = varied == STEPS
  cost = {'is_joined': along_steps}
  found = {
    EVALUATIONS: Across(
      'evaluations of the network for a sample',
      lambda point: point.evaluations,
      '' if along_steps else varied,
      **cost,
    ),
    'quality-seconds': Across('seconds for a sample', lambda point: point.seconds, varied, **cost),
  }
  if varied and not along_steps:
    found[f'quality-{key(varied)}'] = Across(varied, lambda p: p.values[varied], is_log=False)
  return found


def lines_along(group: Sequence[Point], field: str) -> Lines:
  """Points that differ in `field` alone, in its order; without a field every point by itself."""
  fields = [name for name in group[0].values if name != field]
  found: dict[str, list[Point]] = {}
  for point in group:
    name = point.label(fields) or str(point.record.samples.get('sampler', ''))
    found.setdefault(name, []).append(point)
  if not field:
    return found
  return {name: sorted(line, key=lambda point: point.values[field]) for name, line in found.items()}


def _varied(group: Sequence[Point]) -> str:
  """The field of a line's points: the number of steps, else the number with most values; '' for none."""
  numbers = {
    field: len({point.values[field] for point in group})
    for field, value in group[0].values.items()
    if of.is_number(value)
  }
  numbers = {field: count for field, count in numbers.items() if count > 1}
  return STEPS if STEPS in numbers else max(numbers, key=numbers.get, default='')


def _quality(lines: Lines, across: Across):
  """A Figure of each of the metrics along an axis."""
  group = [point for line in lines.values() for point in line]
  metrics = sweep_tables.quality_metrics(group)
  is_named = bool(across.beside) and len(group) <= MOST_NAMED
  real = _within(sweep_tables.real(group), metrics, group)
  handles, labels = plots.model_handles(dict(enumerate(lines)), lines=across.is_joined)
  if real:
    handles.append(plots.handle(color=plots.GREY, linestyle=':'))
    labels.append(REAL)
  figure = plots.new_figure(len(metrics), 3.0, handles, labels)
  for number, metric in enumerate(metrics, 1):
    axes = figure.add_subplot(1, len(metrics), number)
    values = [point.record.value(metric) for point in group] + [real.get(metric)]
    for look, line in enumerate(lines.values()):
      own = {**plots.look(look), **({} if across.is_joined else {'linestyle': ''})}
      measured = [point for point in line if point.record.value(metric) is not None]
      _draw_line(axes, measured, metric, across, own)
      if is_named:
        _name_points(axes, measured, metric, across, own['color'])
    if metric in real:
      axes.axhline(real[metric], color=plots.GREY, linestyle=':', linewidth=1)
    axes.margins(0.08)
    axes.set_xlabel(plain(across.name, 60), fontsize=NORMAL)
    title = of.metric_title(metric, group[0].record.features)
    axes.set_ylabel(towards(title, of.direction(metric), fold=True), fontsize=NORMAL)
    plots.finish(axes, y=[value for value in values if value is not None])
    if across.is_log:
      plots.cost_axis(axes, [across.value(point) for point in group])
  made, against, reference = of.headline([p.record for p in group]).partition(' against ')
  heading = [plain(made, 80), plain(f'{against}{reference}'.strip(), 80)]
  heading += [plain(f'beside the points: {across.beside}', 80)] if is_named else []
  figure.suptitle('\n'.join(heading), fontsize=SMALL)
  return figure


def _draw_line(axes, line: Sequence[Point], metric: str, across: Across, own: dict) -> None:
  """Draws a line with the deviations of its points, over seeds or else over splits, where there are any."""
  x, y = [across.value(point) for point in line], [point.record.value(metric) for point in line]
  spread = [point.record.spread(metric) for point in line]
  if any(spread):
    bars = {'linestyle': '', 'ecolor': own['color'], 'elinewidth': 0.8, 'capsize': 2, 'alpha': 0.5}
    axes.errorbar(x, y, yerr=spread, **bars)
  axes.plot(x, y, **own, linewidth=1.3, markersize=5, zorder=3)


def _name_points(axes, line: Sequence[Point], metric: str, across: Across, colour: str) -> None:
  """Writes the value of the field `beside` at each point."""
  for point in line:
    place = across.value(point), point.record.value(metric)
    text, style = shown(point.values[across.beside]), {'color': colour, 'fontsize': SMALL - 1}
    axes.annotate(text, place, (3, 3), textcoords='offset points', **style)


def _within(
  real: Mapping[str, Any], metrics: Sequence[str], group: Sequence[Point]
) -> dict[str, float]:
  """Those of the metrics of real images that stand on the axes of the points without hiding their order."""
  found = {}
  for metric in metrics:
    values = [point.record.value(metric) for point in group]
    values = [value for value in values if value is not None]
    if of.is_number(real.get(metric)) and values:
      low, high = min(values), max(values)
      if low / NEAR <= real[metric] <= high * NEAR:
        found[metric] = real[metric]
  return found


def _guidance(group: Sequence[Point]):
  """A Figure of IS against FID along guidance, a line for each combination of the other fields, or None."""
  if len({point.values.get(GUIDANCE) for point in group}) < 2:
    return None
  lines = lines_along(group, GUIDANCE)
  records = []
  for name, line in lines.items():
    for point in line:
      config = {**point.record.run.config, 'published': dict.fromkeys(_PUBLISHED, 0.0)}
      run = dataclasses.replace(point.record.run, name=name, path=name, config=config)
      records.append(dataclasses.replace(point.record, run=run))
  return scatter.scatter(records, {name: number for number, name in enumerate(lines)})


_PUBLISHED = ('fid', 'inception_score', 'inception_score_std')
