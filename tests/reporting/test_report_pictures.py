"""Panels hold the right frames of the right models, pixel for pixel; plots hold the right numbers.

Frames are of one colour each, which tells model, class and time, so any mix-up shows.
"""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from diffusion_jax.reporting import images, panel, plots
from diffusion_jax.reporting.curves import loss_plots, metric_plots, read_series
from diffusion_jax.reporting.panel import EMPTY, Denoising
from diffusion_jax.reporting.records import Published, Record
from diffusion_jax.reporting.scatter import scatter

CLASSES = ('ant', 'bee', 'cat', 'dog')


def coloured(number, count=5, classes=CLASSES, side=64, rows=None):
  """(F, R, side, side, 3): red tells the model, green the class, blue the frame."""
  rows = len(classes) if rows is None else rows
  frames = np.zeros((count, rows, side, side, 3), np.uint8)
  frames[..., 0] = 40 * (number + 1)
  frames[..., 1] = 50 * (np.arange(rows)[:, None, None] + 1)
  frames[..., 2] = 20 * (np.arange(count)[:, None, None, None] + 1)
  return frames


def model(number, classes=CLASSES, **options):
  frames = coloured(number, classes=classes, **options)
  return Denoising(f'model {number}', frames, classes)


def cells(picture, side):
  """The colours of all blocks side x side of one colour, from the top and the left: rows of them."""
  mask = picture[..., 0] != picture[..., 1]  # Text is grey; the colours above never are.
  found, seen = [], np.zeros(mask.shape, bool)
  for y, x in zip(*np.nonzero(mask)):
    if not seen[y, x]:
      block = picture[y : y + side, x : x + side]
      assert block.shape == (side, side, 3) and np.all(block == block[0, 0]), (y, x)
      assert not seen[y : y + side, x : x + side].any()
      seen[y : y + side, x : x + side] = True
      found.append((y, x, tuple(int(value) for value in block[0, 0])))
  assert np.array_equal(seen, mask)  # Nothing else is coloured.
  rows = {}
  for y, x, colour in found:
    rows.setdefault(y, []).append((x, colour))
  return [[colour for _, colour in sorted(row)] for _, row in sorted(rows.items())]


def colour(number, row, frame):
  return (40 * (number + 1), 50 * (row + 1), 20 * (frame + 1))


def test_panel_is_a_row_a_model_and_a_block_a_class():
  picture = panel.picture([model(0), model(1, count=9)], num_classes=2, num_snapshots=3)
  assert cells(picture, 64) == [
    [colour(0, row, frame) for row in (0, 1) for frame in (0, 2, 4)],
    [colour(1, row, frame) for row in (0, 1) for frame in (0, 4, 8)],
  ]


def test_panel_shows_three_classes_at_most():
  assert len(cells(panel.picture([model(0)], 4, 2), 64)[0]) == 3 * 2


def test_classes_are_shared_by_name_whatever_their_order():
  other = model(1, classes=('dog', 'eel', 'bee'))
  names = panel.shared_classes([model(0), other], 6)
  assert names == ['bee', 'dog']
  assert cells(panel.picture([model(0), other], 6, 2), 64) == [
    [colour(0, row, frame) for row in (1, 3) for frame in (0, 4)],
    [colour(1, row, frame) for row in (2, 0) for frame in (0, 4)],
  ]


def test_a_class_that_a_model_lacks_is_an_empty_cell():
  models = [model(0, classes=('ant',)), model(1, classes=('bee',)), model(2, classes=('bee',))]
  assert panel.shared_classes(models, 6) == ['bee']
  picture = panel.picture(models, 6, 2)
  assert cells(picture, 64) == [[colour(n, 0, f) for f in (0, 4)] for n in (1, 2)]
  empty = (picture == EMPTY).all(axis=-1)
  assert 0 <= empty.sum() - 2 * 64 * 64 < 50  # The header has greys too.


def test_models_without_classes_show_their_first_samples():
  free = Denoising('free', coloured(1), ())
  assert cells(panel.picture([model(0, classes=('bee', 'cat')), free], 2, 2), 64)[1] == [
    colour(1, row, frame) for row in (0, 1) for frame in (0, 4)
  ]
  assert panel.shared_classes([free], 2) == ['sample 1', 'sample 2']
  assert len(cells(panel.animation([free], 3)[0], 88 + 40)) == 3


def test_the_label_says_which_models_have_no_classes():
  frames = coloured(0)
  one, other = (panel.picture([Denoising('name', frames, names)], 2, 2) for names in (CLASSES, ()))
  width = 90  # Left of the images.
  assert (
    one.shape[0] <= other.shape[0]
    and (other[30:, :width] < 200).sum() > 2 * (one[30:, :width] < 200).sum()
  )


def test_animation_is_a_column_a_model_and_a_row_a_class():
  models = [model(0, side=100), model(1, count=3, side=100)]
  pictures = panel.animation(models, num_classes=3)
  assert len(pictures) == 5
  for number, picture in enumerate(pictures):
    nearest = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)][
      number
    ]  # Of 5 and of 3 frames; ties earlier.
    assert cells(picture, 100) == [[colour(m, row, nearest[m]) for m in (0, 1)] for row in range(3)]


def test_animation_finds_classes_by_name():
  other = model(1, classes=('dog', 'eel', 'bee'), side=88)
  last = panel.animation([model(0, side=88), other], 6)[-1]
  assert cells(last, 88) == [
    [colour(0, 1, 4), colour(1, 2, 4)],
    [colour(0, 3, 4), colour(1, 0, 4)],
  ]


def test_frames_are_chosen_by_their_times():
  frames = coloured(0, count=4)
  uneven = Denoising('uneven', frames, CLASSES, np.array([1.0, 0.9, 0.45, 0.0], np.float32))
  assert uneven.snapshots(3).tolist() == [0, 2, 3]
  assert uneven.snapshots(11).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
  broken = dataclasses.replace(uneven, times=np.full(4, np.nan))
  assert broken.snapshots(4).tolist() == [0, 1, 2, 3]
  assert Denoising('short', frames[:1], CLASSES).snapshots(3).tolist() == [0, 0, 0]


@pytest.mark.parametrize('side, cell', [(8, 64), (48, 96), (128, 128), (256, 128)])
def test_images_of_all_sizes_become_one_size(side, cell):
  assert [len(row) for row in cells(panel.picture([model(0, side=side)], 1, 2), cell)] == [2]
  mixed = [model(0, side=side), model(1, side=8)]
  assert [len(row) for row in cells(panel.picture(mixed, 1, 2), cell)] == [2, 2]


def test_grey_images_become_rgb():
  frames = np.full((2, 1, 8, 8, 1), 77, np.uint8)
  picture = panel.picture([Denoising('grey', frames, ('0',))], 1, 2)
  assert (picture == 77).all(axis=-1).sum() >= 2 * 64 * 64


def test_a_large_animation_has_fewer_frames_but_the_first_and_the_last():
  classes = tuple(f'class {i}' for i in range(4))
  models = [model(0, classes=classes, count=11), *(model(1, classes=classes) for _ in range(19))]
  pictures = panel.animation(models, 4)
  assert len(pictures) == 11  # 20 x 4 images of 88 px allow 9, but 12 are always allowed.
  many = [dataclasses.replace(m, frames=np.repeat(m.frames[:, :, :8, :8], 3, 0)) for m in models]
  pictures = panel.animation(many, 4)
  assert len(pictures) == 12
  assert cells(pictures[-1], 88)[0][0] == colour(0, 0, 10)
  assert cells(pictures[0], 88)[3][0] == colour(0, 3, 0)


def test_gif_keeps_frames_and_colours(tmp_path):
  pictures = panel.animation([model(0, side=88), model(1, side=88)], 2)
  images.save_gif(tmp_path / 'panel.gif', pictures)
  gif = Image.open(tmp_path / 'panel.gif')
  assert gif.n_frames == 5 and gif.size == pictures[0].shape[1::-1]
  for number in range(5):
    gif.seek(number)
    found = cells(np.asarray(gif.convert('RGB')), 88)
    assert found == [[colour(m, row, number) for m in (0, 1)] for row in (0, 1)]
  assert gif.info['duration'] == 1500  # The last is held.


@pytest.mark.parametrize('text', ['x' * 200, 'a/b-c d' * 30, 'été', '', 'one-two-three'])
def test_wrapped_text_fits(text):
  font = panel._font(13)
  lines = panel.wrapped(text, font, 80, 3)
  assert 1 <= len(lines) <= 3 and all(font.getlength(line) <= 80 for line in lines)
  if len(text) > 60:
    assert '…' in ''.join(lines) and lines[0][0] == text[0] and lines[-1][-1] == text[-1]
  else:
    assert ''.join(lines) == text


def test_accents_are_drawn():
  boxes = [bytes(panel._font(20).getmask(letter)) for letter in ('é', 'ü', 'ø')]
  assert len(set(boxes)) == 3  # A font without them draws the same box for all.


# Plots.


def record(run, fid, score, features='inception', **changes):
  fields = {
    'model': run.upper(),
    'run': run,
    'name': 'ddim50',
    'protocol': {'num_samples': 5000, 'reference_size': 5000, 'features': features},
    'metrics': {'frechet_distance': fid, 'inception_score': score, 'inception_score_std': 0.1},
    'num_classes': 10,
  }
  return Record(**{**fields, **changes})


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
  published = Published('DDPM', 150.0, 4.45, 0.1)
  group = [record('a', 20.0, 7.0, published=published), record('b', 30.0, 6.0)]
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
  published = Published('DDPM', 150.0, 4.45, 0.1)
  group = [record('a', 20.0, 7.0, 'pixels', published=published)]
  axes = scatter(group, LOOKS).axes[0]
  assert list(points(axes)) == [(20.0, 7.0)]
  assert axes.get_xlabel() == 'Frechet distance (pixels)  (← better)'
  assert axes.get_ylabel().startswith('score') and 'pixels' in axes.get_ylabel()


def test_scatter_joins_the_results_of_a_run_by_guidance_and_says_which():
  sweep = [
    record('a', fid, score, several=True, samples={'cfg_scale': scale})
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
    record('a', 5 + rng.random(), 9 + rng.random(), several=True, samples={'cfg_scale': float(i)})
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
    features = {'features': {'name': 'dataset_classifier', 'dataset_classifier': {}}}
    config = {**CONFIG, 'data': data, 'eval': features, 'space': 'latent'}
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
  'task': 'diffusion',
  'space': 'pixel',
  'data': {'name': 'digits', 'fingerprint': 'f' * 16, 'image_size': 8},
  'process': {'prediction_type': 'v', 'learned_variance': False},
  'schedule': {'name': 'cosine', 'cosine': {'num_timesteps': 1000}},
  'loss': {'weighting': 'none'},
  'eval': {'features': {'name': 'inception', 'inception': {}}, 'reference': 'holdout'},
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


@pytest.mark.parametrize('prefix', ['holdout_', ''])
def test_held_out_psnr_is_drawn_without_training_s(tmp_path, prefix):
  """Runs without the prefix have both under one name: held-out ones stand in lines without a loss."""
  path = tmp_path / 'metrics.jsonl'
  lines = [
    {'step': 10, 'loss': 2.0, 'psnr': 30.0, 'kl': 5.0},
    {'step': 10, f'{prefix}psnr': 20.0, f'{prefix}kl': 6.0},
    {'step': 15, 'loss': None, 'psnr': 40.0},
    {'step': 20, f'{prefix}psnr': 22.0},
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  found, _ = read_series(path)
  assert {name: values.tolist() for name, (_, values) in found.items()} == {
    **{'loss': [2], 'psnr': [30, 40], 'kl': [5]},
    **{'holdout_psnr': [20, 22], 'holdout_kl': [6]},
  }
  figures = metric_plots([('A', 0, {**CONFIG, 'task': 'autoencoder'}, found)])
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
