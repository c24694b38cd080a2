"""Tables, and what stands in their cells."""

import json

from diffusion_jax.reporting.results import evaluation_table
from diffusion_jax.reporting.runs import read_result
from diffusion_jax.reporting.tables import (
  markdown_table,
  number,
  quantity,
  setting,
  shortened,
  table,
)


def test_table_and_quantities():
  assert table(['name', 'x'], [['a', '1'], ['long name', '10']]) == (
    'name        x\n---------  --\na           1\nlong name  10'
  )
  assert [quantity(x, 'B') for x in (12, 1234, 5.6e9)] == ['12 B', '1.23 kB', '5.6 GB']


def test_cells():
  texts = [number(x) for x in (150.0, 9.7286, 0.00123, 1234.5, 0, float('nan'), None, 'x')]
  assert texts == ['150.0', '9.729', '0.001230', '1,234', '0.000', 'nan', '–', 'x']
  assert [setting(x) for x in (2.0, True, None, [1, 2])] == ['2', 'True', '–', '[1, 2]']
  assert shortened('abcdefgh', 8) == 'abcdefgh' and shortened('abcdefghi', 8) == 'abc…fghi'


def test_what_is_no_result_is_left_out_of_the_table(tmp_path, capsys):
  names = ('reference_size', 'num_samples', 'reference', 'features', 'features_digest', 'backend')
  protocol = dict.fromkeys(names, 'x') | {'reference_size': 2, 'num_samples': 3}
  good = {'name': 'mine', 'protocol': protocol, 'metrics': {'kid': 1.5}, 'images_per_s': None}
  good |= {'deviation': {}, 'samples': {}, 'seeds': [], 'warnings': [], 'parameters': 1, 'time': ''}
  (tmp_path / 'mine.json').write_text(json.dumps(good))
  others = ['', '[]', '3', '{}', json.dumps({**good, 'metrics': []}), '{"protocol": {}}']
  for number_, content in enumerate(others):
    (tmp_path / f'other{number_}.json').write_text(content)
    assert read_result(tmp_path / f'other{number_}.json', print) is None
  capsys.readouterr()
  assert evaluation_table(tmp_path, good).count('1.5') == 1
  assert capsys.readouterr().out.count('left out') == len(others)


def test_markdown_columns_stand_to_the_right_but_for_the_named_ones():
  assert markdown_table(['a', 'b', 'c'], [['x', '1', 'y']], left=(0, 2)) == (
    '| a | b | c |\n| --- | ---: | --- |\n| x | 1 | y |'
  )
