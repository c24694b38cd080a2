"""Plots for print: curves against training steps, and what all plots share.

Every model has a colour, a marker and a line of its own, the same in all figures, so that they can
be told apart without colours too. The colours are those of Okabe and Ito (2008, "Color Universal
Design") with grey for their yellow, which white paper swallows. Figures are matplotlib.figure.Figure
objects; nothing global is touched.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.reporting.tables import shortened
from diffusion_jax.runtime.files import replacing

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000', '#999999')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')  # Their number has no divisor with the colours'.
DASHES = ('-', '--', '-.', ':')
GREY = '#444444'
SMALL, NORMAL = 7.5, 9.0  # Points.
LONGEST = 40  # Characters of a name in a legend.
MOST_BANDS = 3  # Bands of deviations in one plot; more hide each other.
MOST_POINTS = 200  # Points of a noisy curve; more are averaged, which shows its course.
WIDTHS = {1: 5.0, 2: 7.2}  # Inches, by the number of plots side by side.
MOST_TICKS, CLOSEST_TICKS = (
  8,
  0.25,
)  # Labels of costs on an axis, and the least logarithm between two.
RANGE_FOR_LOG = 10.0  # Ratio of the largest to the smallest value.


@dataclasses.dataclass(frozen=True)
class Curve:
  """Values of a model at training steps, (n,) each; model: its name, look: its number.

  is_noisy: measured at every logging step on training batches, and drawn thin. spread: (n,) or None.
  """

  model: str
  look: int
  steps: np.ndarray
  values: np.ndarray
  is_noisy: bool = False
  spread: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Axes:
  """One plot: curves that may be compared with each other. better: 1 higher, -1 lower, 0 unknown."""

  title: str
  quantity: str
  better: int
  curves: tuple[Curve, ...]


def look(number: int) -> dict:
  """Colour, marker and line of model number 0, 1, ...; the first 56 differ."""
  return {
    'color': COLOURS[number % len(COLOURS)],
    'marker': MARKERS[number % len(MARKERS)],
    'linestyle': DASHES[number // len(COLOURS) % len(DASHES)],
  }


def plain(text: str, length: int = LONGEST) -> str:
  """At most `length` characters, without mathematics."""
  return shortened(text, length).replace('$', r'\$')


def curves(plots: Sequence[Axes]):
  """A Figure with a plot for every set of comparable curves."""
  across = min(len(plots), 2)
  down = -(-len(plots) // across)
  used = {c.look: c.model for plot in plots for c in plot.curves}
  handles, labels = model_handles(used, lines=True)
  if any(c.is_noisy for plot in plots for c in plot.curves):
    for name, style in (('training', _noisy()), ('held out', {'linewidth': 1.5, 'marker': 'o'})):
      handles.append(handle(color=GREY, **{'markersize': 4, **style}))
      labels.append(name)
  figure = new_figure(across, (2.6 if across > 1 else 3.0) * down, handles, labels)
  for i, plot in enumerate(plots):
    axes = figure.add_subplot(down, across, i + 1)
    for curve in plot.curves:
      _draw_curve(axes, curve, with_spread=len(plot.curves) <= MOST_BANDS)
    axes.set_xlabel('training step', fontsize=NORMAL)
    axes.set_ylabel(towards(plot.quantity, plot.better, fold=True), fontsize=NORMAL)
    title = plain(plot.title, 72)
    title = title.replace(', ', ',\n', 1) if len(title) > 36 else title
    axes.set_title(title, fontsize=SMALL)
    finish(axes, y=np.concatenate([c.values for c in plot.curves]))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_ticker().MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(_ticker().FuncFormatter(lambda step, _: f'{step:,.0f}'))
  return figure


def _draw_curve(axes, curve: Curve, *, with_spread: bool) -> None:
  own = look(curve.look)
  if curve.is_noisy:
    axes.plot(_averaged(curve.steps), _averaged(curve.values), **{**own, **_noisy()})
    return
  every = max(len(curve.steps) // 10, 1)
  axes.plot(curve.steps, curve.values, **own, linewidth=1.5, markersize=4, markevery=every)
  if curve.spread is not None and with_spread:
    low, high = curve.values - curve.spread, curve.values + curve.spread
    axes.fill_between(curve.steps, low, high, color=own['color'], alpha=0.15, linewidth=0)


def _averaged(values: np.ndarray) -> np.ndarray:
  """Means of neighbours, MOST_POINTS of them at most."""
  return np.array([part.mean() for part in np.array_split(values, min(len(values), MOST_POINTS))])


def _noisy() -> dict:
  return {'linewidth': 0.7, 'alpha': 0.55, 'marker': '', 'linestyle': '-'}


def towards(quantity: str, better: int, fold: bool = False) -> str:
  """The label of an axis, with an arrow that points along it to what is better; fold: in two lines."""
  arrow = {1: '  (better →)', -1: '  (← better)', 0: ''}[better]
  text = plain(quantity, 60) + arrow
  return text.replace(' (', '\n(', 1) if fold and len(text) > 30 else text


def new_figure(across: int, height: float, handles, labels):
  """A Figure with its legend below the plots, and room for it."""
  from matplotlib.figure import Figure

  width = WIDTHS[across]
  longest = max(map(len, labels))
  columns = max(min(int(width / (0.55 + 0.06 * longest)), 4, len(labels)), 1)
  height += 0.18 * -(-len(labels) // columns) + 0.3
  figure = Figure(figsize=(width, height), layout='constrained')
  place = {'loc': 'outside lower center', 'ncols': columns}
  figure.legend(handles, labels, fontsize=SMALL, frameon=False, **place)
  return figure


def model_handles(used: Mapping[int, str], lines: bool) -> tuple[list, list[str]]:
  """Legend entries of models by the number of their look."""
  styles = [look(number) | ({} if lines else {'linestyle': ''}) for number in sorted(used)]
  handles = [handle(**style, markersize=5) for style in styles]
  return handles, [plain(used[number]) for number in sorted(used)]


def handle(**style):
  from matplotlib.lines import Line2D

  return Line2D([], [], **style)


def _ticker():
  from matplotlib import ticker

  return ticker


def finish(axes, **values) -> None:
  """Thin frame and grid; logarithmic where values (x=..., y=...) span more than a decade."""
  for name, numbers in values.items():
    numbers = np.asarray(numbers, float)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) and numbers.min() > 0 and numbers.max() > RANGE_FOR_LOG * numbers.min():
      getattr(axes, f'set_{name}scale')('log')
      axis = getattr(axes, f'{name}axis')
      axis.set_major_locator(_ticker().LogLocator(subs=(1, 2, 5)))
      axis.set_major_formatter(_ticker().FuncFormatter(lambda value, _: f'{value:g}'))
      axis.set_minor_formatter(_ticker().NullFormatter())
  axes.tick_params(labelsize=SMALL)
  axes.grid(color='#DDDDDD', linewidth=0.5)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


def cost_axis(axes, costs: Sequence[float]) -> None:
  """A logarithmic x axis, labelled at the costs themselves where they are few."""
  found, ticker = sorted(set(costs)), _ticker()
  axes.set_xscale('log')
  few = len(found) <= MOST_TICKS and min(np.diff(np.log(found)), default=1) > CLOSEST_TICKS
  locator = ticker.FixedLocator(found) if few else ticker.LogLocator(subs=(1, 2, 5))
  axes.xaxis.set_major_locator(locator)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:.3g}'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def save(figure, stem: Path) -> list[Path]:
  """STEM.png and STEM.pdf, each whole or absent, the same bytes every time. Returns: the paths."""
  import matplotlib

  paths = []
  for kind, undated in (('png', {'Software': None}), ('pdf', {'CreationDate': None})):
    path = stem.with_name(f'{stem.name}.{kind}')
    as_letters = matplotlib.rc_context({'pdf.fonttype': 42})
    with as_letters, replacing(path) as stream:
      figure.savefig(stream, format=kind, dpi=200, metadata=undated)
    paths.append(path)
  return paths
