"""Panels hold the right frames of the right models, pixel for pixel.

Frames are of one colour each, which tells model, class and time, so any mix-up shows.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.reporting import images, panel
from diffusion_jax.reporting.panel import EMPTY, Denoising

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
