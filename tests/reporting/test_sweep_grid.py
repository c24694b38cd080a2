"""The picture of a sweep: where every sample of every cell lies, and what is there where one is missing."""

import numpy as np

from diffusion_jax.reporting import sweep_grid
from diffusion_jax.reporting.sweep_grid import Layout, Shown

SIDE = 64  # No enlargement.


def samples(*levels):
  """(n, SIDE, SIDE, 1) of these levels."""
  return np.stack([np.full((SIDE, SIDE, 1), level, np.uint8) for level in levels])


def places(picture, level):
  """The corners of the areas of a level, (top, left) each, sorted; each is a whole sample."""
  mask = (picture == level).all(axis=-1)
  edges = mask & ~np.pad(mask, [(1, 0), (0, 0)])[:-1] & ~np.pad(mask, [(0, 0), (1, 0)])[:, :-1]
  corners = list(zip(*np.nonzero(edges)))
  return [(y, x) for y, x in corners if mask[y : y + SIDE, x : x + SIDE].all()]


def test_cells_lie_in_rows_and_columns_with_their_samples_in_a_square():
  cells = {
    (row, column): Shown(samples(*(10 * (1 + 2 * row + column) + k for k in range(6))), 'note')
    for row in (0, 1)
    for column in (0, 1)
  }
  layout = Layout('title', ['ddim', 'ddpm'], ['5 steps', '10 steps'], cells)
  picture = sweep_grid.picture(layout)
  assert picture.dtype == np.uint8 and picture.shape[2] == 3
  found = {}
  for (row, column), _ in cells.items():
    corners = [places(picture, 10 * (1 + 2 * row + column) + k) for k in range(6)]
    assert [len(corner) for corner in corners] == [1, 1, 1, 1, 0, 0]  # Four beside other cells.
    (top, left), right, below = corners[0][0], corners[1][0], corners[2][0]
    assert right == (top, left + SIDE + 2) and below == (top + SIDE + 2, left)
    found[row, column] = top, left
  assert found[0, 0][0] == found[0, 1][0] < found[1, 0][0] == found[1, 1][0]
  assert found[0, 0][1] == found[1, 0][1] < found[0, 1][1] == found[1, 1][1]
  assert found[0, 0][1] > 40  # The names of rows are on the left.


def test_a_missing_cell_is_grey_and_one_column_shows_all_samples():
  cells = {(0, 0): Shown(samples(1, 2), ''), (1, 1): Shown(samples(3, 4), '')}
  picture = sweep_grid.picture(Layout('', ['a', 'b'], ['c', 'd'], cells))
  grey = (picture == sweep_grid.EMPTY).all(axis=-1)
  assert grey.sum() == 2 * SIDE * (2 * SIDE + 2)
  one = sweep_grid.picture(Layout('', ['a'], [''], {(0, 0): Shown(samples(*range(1, 8)), 'x')}))
  corners = [places(one, level)[0] for level in range(1, 8)]
  assert len({top for top, _ in corners}) == 1
  assert list(np.diff([left for _, left in corners])) == [SIDE + 2] * 6


def test_small_samples_are_enlarged():
  small = np.zeros((4, 8, 8, 3), np.uint8)
  picture = sweep_grid.picture(Layout('', [''], ['a', 'b'], {(0, 0): Shown(small, '')}))
  assert (picture == 0).all(axis=-1).sum() >= 4 * sweep_grid.MIN_SIDE**2


def test_a_long_title_is_folded():
  cells = {(0, 0): Shown(samples(1), '')}
  shapes = [
    sweep_grid.picture(Layout(title, ['a'], [''], cells)).shape
    for title in ('x', 'many names, ' * 9)
  ]
  assert shapes[0][1] == shapes[1][1] and shapes[0][0] < shapes[1][0]
