"""The plots of made-up cells: which points form a line, in which order, what stands beside them."""

import numpy as np

from diffusion_jax.reporting import sweep_plots
from tests.support.sweep_points import grid, make


def lines_of(axes):
  """Label or colour -> points, of the lines with markers."""
  return [np.array(line.get_xydata()) for line in axes.lines if line.get_marker() in 'os^Dv']


def test_quality_has_a_line_a_sampler_along_the_steps():
  figure = sweep_plots.figures(grid())['quality-evaluations']
  distance, score = figure.axes
  ddim, heun = lines_of(distance)
  np.testing.assert_allclose(ddim, [[5, 23], [20, 8], [50, 5]])
  np.testing.assert_allclose(heun, [[10, 21], [40, 6], [100, 3]])
  assert distance.get_xscale() == 'log' and 'better' in distance.get_ylabel()
  assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ['ddim', 'heun']
  np.testing.assert_allclose(lines_of(score)[0][:, 1], 8.0)
  bars = [segment for c in score.collections for segment in c.get_segments()]
  np.testing.assert_allclose(bars[0][:, 1], [7.75, 8.25])  # The deviation over splits.
  assert not distance.collections  # The distance has none.
  dotted = [line for line in distance.lines if line.get_linestyle() == ':']
  assert [line.get_ydata()[0] for line in dotted] == [2.0]  # Real images.


def test_seconds_are_measured_and_real_images_far_away_are_left_out():
  points = [
    make({'sample.num_steps': steps}, steps, 50.0 + steps, speed=1000 / steps) for steps in (5, 50)
  ]
  figure = sweep_plots.figures(points)['quality-seconds']
  axes = figure.axes[0]
  np.testing.assert_allclose(lines_of(axes)[0], [[0.005, 55], [0.05, 100]])
  assert [text.get_text() for text in axes.texts] == ['5', '50']
  assert not [line for line in axes.lines if line.get_linestyle() == ':']
  unmeasured = [make({'sample.num_steps': 5}, 5, 1.0, speed=None)]
  assert set(sweep_plots.figures(unmeasured)) == {'quality-evaluations'}


def test_bars_are_the_deviation_over_seeds_where_it_was_measured():
  seeds = {'frechet_distance': 0.5, 'inception_score': 0.125}
  points = [make({'sample.num_steps': n}, n, 9.0, deviation=seeds) for n in (5, 10)]
  found = sweep_plots.figures(points)['quality-evaluations'].axes
  bars = [next(s for c in axes.collections for s in c.get_segments())[:, 1] for axes in found]
  np.testing.assert_allclose(bars, [[8.5, 9.5], [7.875, 8.125]])


def test_guidance_is_a_line_a_sampler_from_weak_to_strong():
  points = [
    make({'sample.cfg_scale': scale, 'sampler.name': sampler}, 10, 10 / scale + shift, score=scale)
    for scale in (4.0, 1.0, 2.0)
    for sampler, shift in (('ddim', 0.0), ('ddpm', 1.0))
  ]
  figures = sweep_plots.figures(points)
  (axes,) = figures['fid-is'].axes
  ddim, ddpm = lines_of(axes)
  np.testing.assert_allclose(ddim, [[10, 1], [5, 2], [2.5, 4]])
  np.testing.assert_allclose(ddpm, [[11, 1], [6, 2], [3.5, 4]])
  assert {'cfg 1', 'cfg 4'} <= {text.get_text() for text in axes.texts}
  named = figures['quality-evaluations'].axes[0]
  assert [text.get_text() for text in named.texts] == ['1', '2', '4'] * 2  # Points, not lines.
  assert all(line.get_linestyle() == 'None' for line in named.lines if line.get_marker() == 'o')
  ddim, ddpm = lines_of(figures['quality-cfg_scale'].axes[0])
  np.testing.assert_allclose(ddim, [[1, 10], [2, 5], [4, 2.5]])
  np.testing.assert_allclose(ddpm, [[1, 11], [2, 6], [4, 3.5]])
  assert 'fid-is' not in sweep_plots.figures(points[:1])
