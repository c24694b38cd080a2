"""The plot of IS against FID, of comparable results."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from diffusion_jax.reporting import plots
from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.plots import NORMAL, SMALL, plain, towards
from diffusion_jax.reporting.records import Record


def scatter(group: Sequence[Record], looks: Mapping[str, int]):
  """A Figure of IS against FID of comparable records, or None if none has both; looks: by run.

  The results of a run are joined in the order of their guidance scales, which stand beside them.
  Published numbers are hollow and joined to ours; they are drawn only for Inception features, because
  with others the axes are other quantities.
  """
  shown = [record for record in group if None not in _point(record)]
  if not shown:
    return None
  runs: dict[str, list[Record]] = {}
  for record in sorted(shown, key=lambda r: r.cfg_scale):
    runs.setdefault(record.run.path, []).append(record)
  runs = {run: runs[run] for run in sorted(runs, key=lambda run: looks[run])}
  published = _published(runs) if shown[0].features == 'inception' else {}
  several = any(len(results) > 1 for results in runs.values())
  handles, labels = plots.model_handles(
    {looks[run]: results[0].run.name for run, results in runs.items()}, lines=False
  )
  if published:
    handles.append(
      plots.handle(color=plots.GREY, marker='o', linestyle=':', markerfacecolor='none')
    )
    like = of.is_like_published(shown[0].protocol)
    labels.append(f'published (other {"images" if like else "protocol"})')
  figure = plots.new_figure(1, 3.3, handles, labels)
  axes = figure.add_subplot()
  for run, results in runs.items():
    _draw_results(axes, results, plots.look(looks[run]), published.get(run))
  names = [of.metric_title(metric, shown[0].features) for metric in (of.FRECHET, of.SCORE)]
  axes.set_xlabel(towards(names[0], -1), fontsize=NORMAL)
  axes.set_ylabel(towards(names[1], 1, fold=True), fontsize=NORMAL)
  made, against, reference = of.headline(group).partition(' against ')
  lines = [plain(made, 60), plain(f'{against}{reference}'.strip(), 60)]
  axes.set_title('\n'.join(lines), fontsize=SMALL)
  axes.margins(0.1)
  points = [*map(_point, shown), *(numbers[:2] for numbers in published.values())]
  plots.finish(axes, x=[x for x, _ in points], y=[y for _, y in points])
  if several:
    _annotate(figure, axes, list(runs.values()))
  return figure


def _published(runs: Mapping[str, Sequence[Record]]) -> dict[str, tuple[float, float, float]]:
  """FID, IS and its deviation as published, for the runs with both numbers."""
  found = {run: results[0].run.published for run, results in runs.items()}
  return {
    run: (numbers['fid'], numbers['inception_score'], numbers['inception_score_std'])
    for run, numbers in found.items()
    if numbers['fid'] and numbers['inception_score']
  }


def _point(record: Record) -> tuple[float | None, float | None]:
  """(Frechet distance, score) of a record."""
  return record.value(of.FRECHET), record.value(of.SCORE)


def _is_sweep(results: Sequence[Record]) -> bool:
  """Whether guidance scales tell the results of a run apart."""
  return len({r.cfg_scale for r in results}) == len(results) > 1


def _beside(results: Sequence[Record]) -> list[tuple[tuple[float, float], str]]:
  """Points of a run, and what tells them apart."""
  if len(results) == 1:
    return [(_point(results[0]), '')]
  sweep = _is_sweep(results)
  return [(_point(r), f'cfg {r.cfg_scale:g}' if sweep else r.name) for r in results]


def _draw_results(axes, results: Sequence[Record], own: dict, published) -> None:
  points = np.array([_point(r) for r in results])
  spreads = [[r.spread(metric) for r in results] for metric in (of.FRECHET, of.SCORE)]
  bars = {'linestyle': '', 'ecolor': own['color'], 'elinewidth': 0.8, 'capsize': 2}
  axes.errorbar(*points.T, xerr=spreads[0], yerr=spreads[1], **bars)
  line = {} if _is_sweep(results) else {'linestyle': ''}
  axes.plot(*points.T, **{**own, 'linewidth': 0.9, **line}, markersize=6, zorder=3)
  if published:
    *there, deviation = published
    axes.errorbar(*there, yerr=deviation, **{**bars, 'elinewidth': 0.6})
    hollow = {'markerfacecolor': 'white', 'linestyle': '', 'zorder': 3}
    axes.plot(*there, **{**own, **hollow}, markersize=6)
    joined = np.array([points[-1], there])
    axes.plot(*joined.T, color=own['color'], linestyle=':', linewidth=0.7, zorder=1)


def _annotate(figure, axes, runs: Sequence[Sequence[Record]]) -> None:
  """Writes beside each point where nothing is yet; what fits nowhere is left out."""
  figure.draw_without_rendering()  # The layout, so that points have places.
  scale = figure.dpi / 72
  occupied = np.concatenate([_ink(axes, results) for results in runs])
  boxes = []
  for point, text in (pair for results in runs for pair in _beside(results)):
    drawn = axes.annotate(text, point, (0, 0), textcoords='offset points', fontsize=SMALL - 1)
    drawn.set_in_layout(False)
    for angle in (45, 135, -45, -135, 0, 180, 90, -90):
      cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
      drawn.set_position((7 * cos, 7 * sin))
      drawn.set_horizontalalignment('center' if abs(cos) < 0.1 else 'left' if cos > 0 else 'right')
      drawn.set_verticalalignment('center' if abs(sin) < 0.1 else 'bottom' if sin > 0 else 'top')
      box = drawn.get_window_extent()
      inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
      near = (occupied > box.min - 3 * scale) & (occupied < box.max + 3 * scale)
      if inside and not near.all(axis=1).any() and not any(box.overlaps(other) for other in boxes):
        boxes.append(box)
        break
    else:
      drawn.remove()


def _ink(axes, results: Sequence[Record]) -> np.ndarray:
  """Returns where points, their bars and joining lines are drawn, (n, 2) in pixels."""
  low = [(_point(r)[0], _point(r)[1] - r.spread(of.SCORE)) for r in results]
  high = [(x, 2 * y - below) for (x, y), (_, below) in zip(map(_point, results), low)]
  pairs = list(zip(low, high))
  if _is_sweep(results):
    pairs += zip(map(_point, results[:-1]), map(_point, results[1:]))
  ends = axes.transData.transform(np.array(pairs).reshape(-1, 2)).reshape(-1, 2, 2)
  between = np.linspace(0, 1, 50)[:, None, None]
  return (ends[:, 0] * (1 - between) + ends[:, 1] * between).reshape(-1, 2)
