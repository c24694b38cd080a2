"""Plots hold the right numbers, and nothing of them is hidden."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from configs import quickstart
from diffusion_jax.reporting import plots
from diffusion_jax.reporting.curves import loss_plots, metric_plots, read_series
from diffusion_jax.reporting.records import Record, Run
from diffusion_jax.reporting.scatter import scatter
from tests.support.run_folders import PUBLISHED


def record(path, fid, score, features='inception', *, model='', published=(), samples=()):
  config = quickstart.get_config().to_dict()
  config['published'] |= dict(published)
  result = {
    'protocol': {'num_samples': 5000, 'reference_size': 5000, 'features': features},
    'metrics': {'frechet_distance': fid, 'inception_score': score, 'inception_score_std': 0.1},
    'deviation': {},
    'samples': dict(samples),
  }
  run = Run(model or path.upper(), Path(path), path, config, {}, {'ddim50': result})
  return Record(run, 'ddim50', result)


def points(axes):
  """(x, y) -> (marker, hollow) of every marker drawn."""
  found = {}
  for line in axes.get_lines():
    if line.get_marker() not in ('', 'None', None, '|', '_', 2, 3):
      for x, y in line.get_xydata():
        found[float(x), float(y)] = (line.get_marker(), line.get_markerfacecolor() == 'white')
  return found


LOOKS = {'a': 0, 'b': 1, 'c': 2}


def test_scatter_holds_every_result_and_published_numbers_hollow():
  group = [record('a', 20.0, 7.0, published=PUBLISHED), record('b', 30.0, 6.0)]
  axes = scatter(group, LOOKS).axes[0]
  assert points(axes) == {
    (20.0, 7.0): ('o', False),
    (150.0, 4.45): ('o', True),
    (30.0, 6.0): ('s', False),
  }
  joined = [line.get_xydata().tolist() for line in axes.get_lines() if line.get_linestyle() == ':']
  assert joined == [[[20.0, 7.0], [150.0, 4.45]]]
  assert axes.get_xlabel() == 'FID  (← better)' and axes.get_ylabel() == 'IS  (better →)'


def test_scatter_of_other_features_is_not_called_fid_and_has_no_published_numbers():
  group = [record('a', 20.0, 7.0, 'pixels', published=PUBLISHED)]
  axes = scatter(group, LOOKS).axes[0]
  assert list(points(axes)) == [(20.0, 7.0)]
  assert axes.get_xlabel() == 'Frechet distance (pixels)  (← better)'
  assert axes.get_ylabel().startswith('score') and 'pixels' in axes.get_ylabel()


def test_scatter_joins_the_results_of_a_run_by_guidance_and_says_which():
  sweep = [
    record('a', fid, score, samples={'cfg_scale': scale})
    for fid, score, scale in ((9.0, 9.5, 4.0), (2.0, 9.0, 1.0), (5.0, 9.3, 2.0))
  ]
  axes = scatter(sweep, LOOKS).axes[0]
  (line,) = [
    line for line in axes.get_lines() if len(line.get_xdata()) == 3 and line.get_linestyle() == '-'
  ]
  assert line.get_xdata().tolist() == [2.0, 5.0, 9.0]
  texts = {text.get_text(): text.xy for text in axes.texts}
  assert texts == {'cfg 1': (2.0, 9.0), 'cfg 2': (5.0, 9.3), 'cfg 4': (9.0, 9.5)}


def test_annotations_do_not_overlap_each_other_or_points():
  rng = np.random.default_rng(0)
  crowd = [
    record('a', 5 + rng.random(), 9 + rng.random(), samples={'cfg_scale': float(i)})
    for i in range(40)
  ]
  figure = scatter(crowd, LOOKS)
  figure.draw_without_rendering()
  axes = figure.axes[0]
  boxes = [text.get_window_extent() for text in axes.texts]
  assert 3 < len(boxes) < 40
  places = axes.transData.transform(
    [(r.value('frechet_distance'), r.value('inception_score')) for r in crowd]
  )
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[:i])
    assert not any(box.contains(*place) for place in places)


def test_no_scatter_without_both_metrics():
  assert scatter([record('a', 20.0, float('nan')), record('b', 3.0, None)], LOOKS) is None


@pytest.mark.parametrize('number', [1, 2, 8, 25])
def test_nothing_of_a_figure_is_cut_off_and_legends_do_not_cover_plots(number):
  names = [f'models/a-rather-long-name-of-number-{i}-of-them' for i in range(number)]
  group = [record(name, 10.0 + i, 5.0 + i) for i, name in enumerate(names)]
  figure = scatter(group, {name: i for i, name in enumerate(names)})
  figure.draw_without_rendering()
  legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_tightbbox()
  for box in (legend, axes):
    assert box.x0 >= -1 and box.y0 >= -1
    assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
  assert not legend.overlaps(axes)
  assert axes.height > 2.2 * figure.dpi
  assert len(figure.legends[0].get_texts()) == number


def test_nothing_of_two_plots_side_by_side_is_cut_off():
  runs = []
  for i in range(4):
    data = {'name': f'photographs-of-many-kinds-{i}', 'fingerprint': str(i), 'image_size': 8}
    evaluation = {**CONFIG['eval'], 'features': {'name': 'dataset_classifier'}}
    config = {**CONFIG, 'data': data, 'eval': evaluation, 'space': 'latent'}
    runs.append(
      (f'model {i}', i, config, series(**{'inception_score@50000': [2, 3], 'loss': [2, 1]}))
    )
  for axes in (metric_plots(runs)['curves-inception_score-50000'], loss_plots(runs)):
    figure = plots.curves(axes)
    figure.draw_without_rendering()
    boxes = [drawn.get_tightbbox() for drawn in figure.axes] + [
      figure.legends[0].get_window_extent()
    ]
    assert len(boxes) == 5
    for i, box in enumerate(boxes):
      assert box.x0 >= -1 and box.y0 >= -1, box
      assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, box
      assert not any(box.overlaps(other) for other in boxes[:i])


def test_models_look_different_in_colour_and_in_shape():
  looks = [tuple(plots.look(i).values()) for i in range(56)]
  assert len(set(looks)) == 56
  assert len({look[0] for look in looks[:8]}) == 8
  neighbours = itertools.pairwise(looks)
  assert all(a[0] != b[0] and a[1] != b[1] for a, b in neighbours)


CONFIG = {
  'objective': {'name': 'denoising', 'denoising': {'weighting': 'none'}},
  'space': 'pixel',
  'vae': {'fingerprint': 'e' * 16, 'scale': 0.0},
  'data': {'name': 'digits', 'fingerprint': 'f' * 16, 'image_size': 8},
  'process': {'prediction_type': 'v', 'learned_variance': False},
  'schedule': {'name': 'cosine', 'cosine': {'num_timesteps': 1000}},
  'time_sampling': {'name': 'uniform'},
  'eval': {'features': {'name': 'inception'}, 'reference': 'holdout', 'backend': 'jax'},
}


def series(**values):
  return {name: (np.arange(1, len(v) + 1) * 10, np.array(v, float)) for name, v in values.items()}


def test_series_are_read_in_order_and_damage_is_counted(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(
    '{"step": 20, "loss": 0.5, "text": "x"}\n{"step": 10, "loss": 1.5}\n[1]\n{"loss": 3}\n'
    '{"step": 30, "loss": null}\n{"step": 40, "loss": NaN}\n{"step": 20, "loss": 0.25}\n{"step": 5'
  )
  found, unreadable = read_series(path)
  assert list(found) == ['loss'] and unreadable == 3
  assert [a.tolist() for a in found['loss']] == [[10, 20], [1.5, 0.25]]
  assert read_series(tmp_path / 'none.jsonl') == ({}, 0)


def test_losses_share_a_plot_only_where_they_are_the_same_quantity():
  other = {**CONFIG, 'process': {'prediction_type': 'eps', 'learned_variance': False}}
  both = series(loss=[3, 2, 1], holdout_loss=[2.5])
  runs = [
    ('A', 0, CONFIG, both),
    ('B', 1, other, both),
    ('C', 2, CONFIG, both),
    ('D', 3, CONFIG, {}),
  ]
  axes = loss_plots(runs)
  assert [[curve.model for curve in plot.curves] for plot in axes] == [
    ['A', 'A', 'C', 'C'],
    ['B', 'B'],
  ]
  assert [plot.quantity for plot in axes] == [
    'mean squared error of v',
    'mean squared error of eps',
  ]
  figure = plots.curves(axes)
  assert len(figure.axes) == 2 and [a.get_xlabel() for a in figure.axes] == ['training step'] * 2
  drawn = [line.get_ydata().tolist() for line in figure.axes[0].get_lines()]
  assert drawn == [[3, 2, 1], [2.5], [3, 2, 1], [2.5]]
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert texts == ['A', 'B', 'C', 'training', 'held out']


def test_held_out_psnr_is_drawn_without_training_s(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [
    {'step': 10, 'loss': 2.0, 'psnr': 30.0, 'kl': 5.0},
    {'step': 10, 'holdout_psnr': 20.0, 'holdout_kl': 6.0},
    {'step': 15, 'loss': None, 'psnr': 40.0},
    {'step': 20, 'holdout_psnr': 22.0},
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  found, _ = read_series(path)
  assert {name: values.tolist() for name, (_, values) in found.items()} == {
    **{'loss': [2], 'psnr': [30, 40], 'kl': [5]},
    **{'holdout_psnr': [20, 22], 'holdout_kl': [6]},
  }
  figures = metric_plots([('A', 0, {**CONFIG, 'objective': {'name': 'autoencoder'}}, found)])
  assert list(figures) == ['curves-holdout_psnr']
  (curve,) = figures['curves-holdout_psnr'][0].curves
  assert curve.steps.tolist() == [10, 20] and curve.values.tolist() == [20, 22]


def test_metrics_in_training_have_a_figure_each_with_their_number_of_samples():
  measured = series(**{'frechet_distance@500': [9, 4], 'inception_score@500': [2, 3]})
  measured |= series(**{'inception_score_std@500': [0.1, 0.2], 'frechet_distance@50': [30, 20]})
  other = {**CONFIG['eval'], 'features': {'name': 'pixels', 'pixels': {}}}
  pixels = {**CONFIG, 'eval': other}
  figures = metric_plots([('A', 0, CONFIG, measured), ('B', 1, pixels, measured)])
  assert sorted(figures) == [
    'curves-frechet_distance-50',
    'curves-frechet_distance-500',
    'curves-inception_score-500',
  ]
  first, second = figures['curves-frechet_distance-500']
  assert (first.quantity, second.quantity) == ('FID', 'Frechet distance (pixels)')
  assert '500 samples' in first.title and first.better == -1
  (score,) = figures['curves-inception_score-500'][0].curves
  assert score.spread.tolist() == [0.1, 0.2]
  axes = plots.curves([first]).axes[0]
  assert axes.get_lines()[0].get_xydata().tolist() == [[10, 9], [20, 4]]
  assert axes.get_ylabel() == 'FID  (← better)'


def test_deviations_are_bands_unless_they_are_too_many():
  measured = series(**{'inception_score@5': [2, 3], 'inception_score_std@5': [0.5, 0.25]})
  for number, bands in ((1, 1), (3, 3), (4, 0)):
    runs = [(f'run {i}', i, CONFIG, measured) for i in range(number)]
    axes = plots.curves(metric_plots(runs)['curves-inception_score-5']).axes[0]
    assert len(axes.collections) == bands
    for band in axes.collections:
      corners = {tuple(point) for point in band.get_paths()[0].vertices.round(6).tolist()}
      assert corners == {(10, 1.5), (10, 2.5), (20, 2.75), (20, 3.25)}


def test_long_noisy_curves_are_averaged():
  values = np.tile([1.0, 3.0], 1000)
  runs = [('A', 0, CONFIG, series(loss=values))]
  (line,) = plots.curves(loss_plots(runs)).axes[0].get_lines()
  assert len(line.get_ydata()) == plots.MOST_POINTS and np.allclose(line.get_ydata(), 2.0)


def test_a_curve_over_decades_is_logarithmic_and_a_negative_one_is_not():
  wide, negative = series(loss=[1, 0.01]), series(loss=[1, -0.01])
  scales = [
    plots.curves(loss_plots([('A', 0, CONFIG, s)])).axes[0].get_yscale() for s in (wide, negative)
  ]
  assert scales == ['log', 'linear']


def test_saved_figures_are_whole_and_the_same_every_time(tmp_path):
  def save(folder):
    folder.mkdir()
    return plots.save(scatter([record('a', 2.0, 3.0)], LOOKS), folder / 'scatter')

  first, second = save(tmp_path / 'one'), save(tmp_path / 'two')
  assert [path.name for path in first] == ['scatter.png', 'scatter.pdf']
  assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
  assert sorted(p.name for p in (tmp_path / 'one').iterdir()) == ['scatter.pdf', 'scatter.png']
  width, _ = Image.open(first[0]).size
  assert width == 1000 and first[1].read_bytes().startswith(b'%PDF')


@pytest.mark.parametrize('name', ['a$b$c', '_hidden', 'x_1^2', 'a\\b'])
def test_names_are_not_mathematics_and_none_is_hidden(name):
  figure = scatter([record('a', 2.0, 3.0, model=name)], LOOKS)
  figure.draw_without_rendering()
  (text,) = figure.legends[0].get_texts()
  assert text.get_text().replace(r'\$', '$') == name and text.get_window_extent().width > 5
  assert not cbook.is_math_text(text.get_text())
