"""The tables of made-up cells: every number, its order and its words."""

import csv
import io

from diffusion_jax.reporting import sweep_tables
from tests.support.sweep_points import grid, make


def test_the_csv_has_every_number_in_full():
  values = {'sampler.name': 'ddim', 'sample.labels': (3, 'two'), 'sample.cfg_scale': 1.5}
  deviation = {'frechet_distance': 0.125}
  points = [make(values, 40, 1 / 3, speed=None), make(values, 40, 9.0, deviation=deviation)]
  groups = sweep_tables.comparable(points)
  rows = list(csv.DictReader(io.StringIO(sweep_tables.csv_text(groups))))
  assert float(rows[0]['frechet_distance']) == 1 / 3 and rows[0]['seconds_per_image'] == ''
  assert rows[0]['sample.labels'] == '(3, two)' and rows[0]['sample.cfg_scale'] == '1.5'
  assert rows[1]['frechet_distance over seeds'] == '0.125' and rows[0]['num_samples'] == '1000'
  assert float(rows[1]['seconds_per_image']) == 0.01 and rows[1]['evaluations'] == '40'


def test_a_table_has_a_row_for_each_cell_and_one_for_real_images():
  (table,) = sweep_tables.tables(sweep_tables.comparable(grid()))
  assert list(table.header[:4]) == ['sampler.name', 'sample.num_steps', 'evaluations', 's/image']
  assert [row[:4] for row in table.rows][3:] == [
    ['heun', '50', '100', '0.01'],
    ['heun', '5', '10', '0.01'],
    ['heun', '20', '40', '0.01'],
    ['real training images', '', '', ''],
  ]
  assert table.rows[0][4:] == ['5.000', '8.000 ± 0.25', '0.5000']
  assert table.rows[-1][4:] == ['2.000', '9.500 ± 0.10', '–']
  text = sweep_tables.markdown('Sweep', sweep_tables.comparable(grid()))
  assert text.count('| heun | ') == 3 and 'Frechet distance' in text


def test_cells_of_other_protocols_have_a_table_of_their_own():
  points = [
    make({'eval.num_samples': count}, 5, 1.0, protocol={'num_samples': count})
    for count in (10, 20, 10)
  ]
  groups = sweep_tables.comparable(points)
  assert [[p.values['eval.num_samples'] for p in group] for group in groups] == [[10, 10], [20]]
  assert [table.title[:3] for table in sweep_tables.tables(groups)] == ['1. ', '2. ']


def test_notes_say_cost_and_distance():
  assert sweep_tables.note(grid()[4]) == '10 evaluations, distance 21'
  point = make({}, 1000, 12.34, protocol={'features': 'inception'})
  assert sweep_tables.note(point) == '1,000 evaluations, FID 12.3'
