"""Tables of made-up runs: every number in its cell, protocols apart."""

import json

import pytest

from diffusion_jax.reporting.tables import escaped
from tests.support.run_folders import (
  METRICS,
  PUBLISHED,
  csv_rows,
  make_run,
  markdown_tables,
  report_of,
  write,
)

INCEPTION = {'features': 'inception', 'num_samples': 5000}


def test_numbers_land_in_their_cells(tmp_path):
  make_run(
    tmp_path / 'a',
    metrics={**METRICS, 'kernel_distance': 0.00123, 'kernel_distance_std': 0.0004, 'recall': 0.5},
    deviation={'frechet_distance': 0.12, 'inception_score': 0.03},
    seeds=3,
  )
  make_run(
    tmp_path / 'deep' / 'er' / 'b',
    metrics={'frechet_distance': 12345.6, 'mode_count': 7},
    changes={'model.name': 'unet', 'space': 'latent', 'num_classes': 0},
    samples={'sampler': 'ddpm', 'num_steps': 1000, 'cfg_scale': 1.0, 'seed': 4},
    parameters=None,
    images_per_s=None,
  )
  folder = report_of(tmp_path)
  ((heading, (a, b)),) = markdown_tables(folder)
  assert heading == (
    'digits: 1,000 class-balanced samples against 297 reference images, dataset_classifier features'
  )
  assert a == {
    'Model': 'a',
    'VAE?': 'no',
    'CFG?': 'yes',
    'Backbone': 'DiT',
    'Frechet distance (dataset_classifier)': '9.729 (± 0.12)',
    'score (dataset_classifier)': '9.495 ± 0.15 (± 0.030)',
    'kernel distance (dataset_classifier)': '0.001230 ± 0.00040',
    'recall': '0.5000',
    'mode count': '–',
    'N': '1,000',
    'Sampler': 'ddim, eta 0',
    'Steps': '50',
    'cfg_scale': '2',
    'Parameters': '1,274,116',
    'Images/s': '45.2',
    'Seeds': '3',
    'seed': '0',
  }
  assert b == {
    **a,
    'Model': 'deep/er/b',
    'VAE?': 'yes',
    'CFG?': 'no',
    'Backbone': 'UNet',
    'Frechet distance (dataset_classifier)': '12,346',
    'score (dataset_classifier)': '–',
    'kernel distance (dataset_classifier)': '–',
    'recall': '–',
    'mode count': '7.000',
    'Sampler': 'ddpm, eta 0',
    'Steps': '1,000',
    'cfg_scale': '–',
    'Parameters': '–',
    'Images/s': '–',
    'Seeds': '1',
    'seed': '4',
  }
  text = (folder / 'table.md').read_text()
  for part in ('f00dfeed01234567', 'ab12cd34', 'classes: balanced', 'backend jax', 'resize none'):
    assert part in text
  assert 'inception_score (splits 10)' in text and 'average ema' in text and 'published' not in text


def test_csv_has_every_number_in_full(tmp_path):
  make_run(tmp_path / 'a,"b"', deviation={'frechet_distance': 0.125}, seeds=2, published=PUBLISHED)
  make_run(tmp_path / 'c', metrics={'recall': 0.1 + 0.2}, protocol={'num_samples': 50})
  first, second = csv_rows(report_of(tmp_path))
  assert float(first['frechet_distance']) == METRICS['frechet_distance']
  assert float(first['frechet_distance over seeds']) == 0.125 and first['seeds'] == '2'
  assert first['run'] == 'a,"b"' and first['Model'] == 'DDPM' and first['kind'] == 'samples'
  assert (first['published FID'], first['N'], first['steps']) == ('150.0', '1000', '50')
  assert json.loads(first['protocol.metrics'])['inception_score'] == {'splits': 10}
  assert (first['table'], second['table']) == ('1', '2')
  assert float(second['recall']) == 0.1 + 0.2 and second['frechet_distance'] == ''
  assert second['published FID'] == '' and second['samples.sampler'] == 'ddim'


def test_protocols_are_never_in_one_table(tmp_path, capsys):
  make_run(tmp_path / 'a')
  make_run(tmp_path / 'b', protocol={'num_samples': 50})
  make_run(tmp_path / 'c', protocol={'metrics': {'fid': {}, 'inception_score': {'splits': 5}}})
  make_run(tmp_path / 'd', protocol={'another_entry': [1]})
  make_run(tmp_path / 'e')
  folder = report_of(tmp_path)
  tables = markdown_tables(folder)
  models = [[row['Model'] for row in rows] for _, rows in tables]
  assert models == [['a', 'e'], ['b'], ['c'], ['d']]
  assert [heading[:2] for heading, _ in tables] == ['1.', '2.', '3.', '4.']
  text = (folder / 'table.md').read_text()
  told = 'They differ in: num samples, metrics, another entry.'
  assert told in text and '4 protocols' in text and told in capsys.readouterr().out
  assert 'another entry: 1.' in text and 'splits 5' in text
  assert len(list(folder.glob('scatter-?.png'))) == 4


def test_a_protocol_is_compared_entry_by_entry_not_in_its_order(tmp_path):
  protocol = json.loads((make_run(tmp_path / 'a') / 'eval/ddim50-cfg2.json').read_text())[
    'protocol'
  ]
  make_run(tmp_path / 'b')
  path = tmp_path / 'b/eval/ddim50-cfg2.json'
  result = json.loads(path.read_text())
  write(path, {**result, 'protocol': dict(reversed(protocol.items()))})
  assert len(markdown_tables(report_of(tmp_path))) == 1


def test_usual_names_and_published_numbers_belong_to_inception_features(tmp_path):
  make_run(tmp_path / 'a', protocol=INCEPTION, published=PUBLISHED)
  make_run(tmp_path / 'b', protocol=INCEPTION)
  make_run(tmp_path / 'c', protocol={**INCEPTION, 'num_samples': 500}, published=PUBLISHED)
  make_run(tmp_path / 'd', protocol={'features': 'pixels'}, published=PUBLISHED)
  folder = report_of(tmp_path)
  (_, (a, b)), (_, (c,)), (_, (d,)) = markdown_tables(folder)
  assert (a['FID'], a['IS'], a['published FID'], a['published IS']) == (
    *('9.729', '9.495 ± 0.15', '150.0', '4.45 ± 0.10'),
  )
  assert (b['Model'], b['published FID'], b['published IS']) == ('b', '–', '–')
  assert a['Model'] == 'DDPM (a)' and c['Model'] == 'DDPM (c)'  # Three runs of this name.
  assert 'FID' not in d and d['Frechet distance (pixels)'] == '9.729' and 'IS' not in d
  sections = (folder / 'table.md').read_text().split('## ')[1:]
  assert 'but other reference images' in sections[0] and 'not comparable' not in sections[0]
  assert 'not comparable' in sections[1] and 'not comparable' in sections[2]


def test_headings_say_what_was_measured(tmp_path):
  for name, balance in (('a', 'balanced'), ('b', 'unconditional'), ('c', '{"counts": [1, 2]}')):
    make_run(tmp_path / name, protocol={'class_balance': balance})
  make_run(
    tmp_path / 'd', protocol={'reference_size': 0, 'num_samples': 50}
  )  # Statistics were given.
  headings = [
    heading.partition(' against ')[::2] for heading, _ in markdown_tables(report_of(tmp_path))
  ]
  references = '297 reference images, dataset_classifier features'
  assert headings == [  # A model without classes stands beside the others, and it is said.
    ('1. digits: 1,000 class-balanced or unconditional samples', references),
    ('2. digits: 1,000 samples', references),
    (
      '3. digits: 50 class-balanced samples',
      'unknown reference images, dataset_classifier features',
    ),
  ]
  told = 'They differ in: num samples, class balance, reference size.'
  assert told in (tmp_path / 'report' / 'table.md').read_text()


def test_reconstructions_have_a_table_of_their_own(tmp_path):
  make_run(
    tmp_path / 'a-vae',
    name='reconstruction',
    metrics={'frechet_distance': 1.5, 'inception_score': 3.0, 'psnr': 24.8},
    changes={'objective.name': 'autoencoder'},
    protocol=INCEPTION,
  )
  make_run(tmp_path / 'b', protocol=INCEPTION)
  folder = report_of(tmp_path)
  (_, samples), (heading, (vae,)) = markdown_tables(folder)
  assert [row['Model'] for row in samples] == ['b'] and 'reconstructions' in heading
  assert vae['reconstruction FID'] == '1.500' and vae['psnr'] == '24.80'
  assert not {'VAE?', 'CFG?', 'Backbone', 'Steps', 'cfg_scale'} & set(vae)
  assert [row['kind'] for row in csv_rows(folder)] == ['samples', 'reconstructions']
  assert [path.name for path in folder.glob('scatter*.png')] == ['scatter-1.png']


def test_several_results_of_a_run_say_which(tmp_path):
  for scale in (10, 2):
    make_run(tmp_path / 'a', name=f'cfg{scale}', samples={'cfg_scale': float(scale)})
  make_run(tmp_path / 'a', name='other', protocol={'num_samples': 50})
  path = tmp_path / 'a/eval/other.json'
  write(path.with_name('cfg2-0badf00d.json'), {**json.loads(path.read_text()), 'name': 'cfg2'})
  path.with_name('cfg10-copy.json').write_bytes(path.with_name('cfg10.json').read_bytes())
  tables = markdown_tables(report_of(tmp_path))
  models = [[row['Model'] for row in rows] for _, rows in tables]
  assert models == [['a, cfg2', 'a, cfg10', 'a, cfg10-copy'], ['a, cfg2', 'a, other']]


def test_the_folder_itself_can_be_the_run(tmp_path):
  make_run(tmp_path / 'mine')
  ((_, (row,)),) = markdown_tables(report_of(tmp_path / 'mine'))
  assert row['Model'] == 'mine'


def test_real_images_and_warnings_are_told(tmp_path):
  real = {'num_images': 900, 'metrics': {'frechet_distance': 1.151, 'inception_score': 9.517}}
  make_run(tmp_path / 'a', real_baseline=real, warnings=['too few samples'])
  make_run(tmp_path / 'b', real_baseline=real)
  folder = report_of(tmp_path)
  ((_, rows),) = markdown_tables(folder)
  assert [row['Model'] for row in rows] == ['a', 'b', 'real training images']
  assert rows[2]['Frechet distance (dataset_classifier)'] == '1.151' and rows[2]['N'] == '900'
  assert 'too few samples (a)' in (folder / 'table.md').read_text()


@pytest.mark.parametrize('name', ['a|b', 'a*b*', '<b>x', '_x_', '`x`', '[x](y)', '$x$', 'a_b'])
def test_names_are_not_markup(tmp_path, name):
  make_run(tmp_path / name)
  ((_, (row,)),) = markdown_tables(report_of(tmp_path))
  assert row['Model'] == name
  assert escaped('a_b') == 'a_b' and escaped('_x_') == r'\_x\_' and escaped('a|b') == r'a\|b'


def test_a_run_without_a_description_of_its_data_is_read(tmp_path):
  (make_run(tmp_path / 'a') / 'data.json').unlink()
  ((heading, (row,)),) = markdown_tables(report_of(tmp_path))
  assert heading.startswith('digits: ') and row['Model'] == 'a' and 'Seeds' not in row
