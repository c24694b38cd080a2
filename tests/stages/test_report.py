"""The report of made-up runs: every number in its cell, protocols apart, and damage named."""

import csv
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs import dit_cfg
from diffusion_jax.config.schema import Report
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.reporting.tables import escaped
from diffusion_jax.stages import report
from tests.support.run_folders import METRICS, make_frames, make_run, write
from tests.test_command import main

PUBLISHED = {'name': 'DDPM', 'fid': 150.0, 'inception_score': 4.45, 'inception_score_std': 0.1}
INCEPTION = {'features': 'inception', 'num_samples': 5000}


def run(folder, num_classes=6, snapshots=5):
  sections = Report(num_classes=num_classes, num_snapshots=snapshots)
  report.run(SimpleNamespace(config=SimpleNamespace(report=sections)), folder)
  return folder / 'report'


def markdown_tables(folder):
  """[(heading, [row as a mapping, ...]), ...] of table.md, read by the rules of GitHub."""
  found = []
  for section in re.split(r'^## ', (folder / 'table.md').read_text(), flags=re.M)[1:]:
    lines = [line for line in section.splitlines() if line.startswith('|')]
    cells = [re.split(r'(?<!\\)\|', line)[1:-1] for line in lines]
    cells = [[re.sub(r'\\(.)', r'\1', cell).strip() for cell in row] for row in cells]
    assert all(len(row) == len(cells[0]) for row in cells)
    assert all(re.fullmatch(r'-+:?', cell) for cell in cells[1])
    found.append((section.splitlines()[0], [dict(zip(cells[0], row)) for row in cells[2:]]))
  return found


def csv_rows(folder):
  with open(folder / 'table.csv', newline='') as file:
    return list(csv.DictReader(file))


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
  folder = run(tmp_path)
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
  assert 'inception_score (splits 10)' in text and 'ema True' in text and 'published' not in text


def test_csv_has_every_number_in_full(tmp_path):
  make_run(tmp_path / 'a,"b"', deviation={'frechet_distance': 0.125}, seeds=2, published=PUBLISHED)
  make_run(tmp_path / 'c', metrics={'recall': 0.1 + 0.2}, protocol={'num_samples': 50})
  first, second = csv_rows(run(tmp_path))
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
  folder = run(tmp_path)
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
  assert len(markdown_tables(run(tmp_path))) == 1


def test_usual_names_and_published_numbers_belong_to_inception_features(tmp_path):
  make_run(tmp_path / 'a', protocol=INCEPTION, published=PUBLISHED)
  make_run(tmp_path / 'b', protocol=INCEPTION)
  make_run(tmp_path / 'c', protocol={**INCEPTION, 'num_samples': 500}, published=PUBLISHED)
  make_run(tmp_path / 'd', protocol={'features': 'pixels'}, published=PUBLISHED)
  folder = run(tmp_path)
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
  headings = [heading.partition(' against ')[::2] for heading, _ in markdown_tables(run(tmp_path))]
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
    changes={'task': 'autoencoder'},
    protocol=INCEPTION,
  )
  make_run(tmp_path / 'b', protocol=INCEPTION)
  folder = run(tmp_path)
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
  tables = markdown_tables(run(tmp_path))
  models = [[row['Model'] for row in rows] for _, rows in tables]
  assert models == [['a, cfg2', 'a, cfg10', 'a, cfg10-copy'], ['a, cfg2', 'a, other']]


def test_the_folder_itself_can_be_the_run(tmp_path):
  make_run(tmp_path / 'mine')
  ((_, (row,)),) = markdown_tables(run(tmp_path / 'mine'))
  assert row['Model'] == 'mine'


def test_real_images_and_warnings_are_told(tmp_path):
  real = {'num_images': 900, 'metrics': {'frechet_distance': 1.151, 'inception_score': 9.517}}
  make_run(tmp_path / 'a', real_baseline=real, warnings=['too few samples'])
  make_run(tmp_path / 'b', real_baseline=real)
  folder = run(tmp_path)
  ((_, rows),) = markdown_tables(folder)
  assert [row['Model'] for row in rows] == ['a', 'b', 'real training images']
  assert rows[2]['Frechet distance (dataset_classifier)'] == '1.151' and rows[2]['N'] == '900'
  assert 'too few samples (a)' in (folder / 'table.md').read_text()


@pytest.mark.parametrize('name', ['a|b', 'a*b*', '<b>x', '_x_', '`x`', '[x](y)', '$x$', 'a_b'])
def test_names_are_not_markup(tmp_path, name):
  make_run(tmp_path / name)
  ((_, (row,)),) = markdown_tables(run(tmp_path))
  assert row['Model'] == name
  assert escaped('a_b') == 'a_b' and escaped('_x_') == r'\_x\_' and escaped('a|b') == r'a\|b'


def test_old_results_without_the_newer_entries_are_read(tmp_path):
  make_run(tmp_path / 'a')
  path = tmp_path / 'a/eval/ddim50-cfg2.json'
  kept = {'name', 'metrics', 'protocol', 'samples'}
  write(path, {k: v for k, v in json.loads(path.read_text()).items() if k in kept})
  (tmp_path / 'a/data.json').unlink()
  ((_, (row,)),) = markdown_tables(run(tmp_path))
  assert row['Parameters'] == '–' and 'Seeds' not in row


def test_damage_is_named_and_the_rest_reported(tmp_path, capsys):
  for name in 'abcdefg':
    make_run(tmp_path / name)
  wrong = json.loads((tmp_path / 'g/eval/ddim50-cfg2.json').read_text()) | {'samples': 'ddim'}
  write(tmp_path / 'g/eval/ddim50-cfg2.json', wrong)
  (tmp_path / 'b/eval/ddim50-cfg2.json').write_text('{"metrics": ')
  (tmp_path / 'c/config.json').write_text('[]')
  write(tmp_path / 'd/eval/ddim50-cfg2.json', {'metrics': {'frechet_distance': 1.0}})
  make_frames(tmp_path / 'e', 'ddim50-cfg2', np.zeros((2, 3, 8, 8), np.uint8))  # No channels.
  (tmp_path / 'f/metrics.jsonl').write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
  (tmp_path / 'trained/checkpoints').mkdir(parents=True)
  write(tmp_path / 'trained/config.json', {})
  ((_, rows),) = markdown_tables(run(tmp_path))
  assert [row['Model'] for row in rows] == ['a', 'e', 'f']
  out = capsys.readouterr().out
  for path, reason in {
    'b/eval/ddim50-cfg2.json': 'damaged',
    'c/config.json': 'not a JSON object',
    'd/eval/ddim50-cfg2.json': "'protocol' is None",
    'g/eval/ddim50-cfg2.json': "'samples' is 'ddim'",
    'e/samples/ddim50-cfg2/frames.npz': 'damaged',
    'f/metrics.jsonl': '1 unreadable lines',
    'trained': 'not evaluated',
    'a': 'no metrics.jsonl',
  }.items():
    assert re.search(rf'^{re.escape(str(tmp_path / path))}: .*{re.escape(reason)}', out, re.M), path
  assert re.search(rf'^{re.escape(str(tmp_path))}/a: no samples/NAME/frames.npz', out, re.M)


def test_nothing_but_damage_is_an_error(tmp_path):
  make_run(tmp_path / 'a')
  (tmp_path / 'a/eval/ddim50-cfg2.json').write_text('')
  with pytest.raises(DamagedError, match='no result can be read'):
    run(tmp_path)


def test_no_run_says_what_one_is_and_how_to_make_it(tmp_path):
  with pytest.raises(InputError) as error:
    run(tmp_path)
  for part in (
    str(tmp_path),
    'config.json',
    'eval/*.json',
    '--mode=evaluate',
    'configs/quickstart',
  ):
    assert part in str(error.value)
  assert not (tmp_path / 'report').exists()
  (tmp_path / 'b/checkpoints').mkdir(parents=True)
  write(tmp_path / 'b/config.json', {})
  with pytest.raises(InputError, match=f'not evaluated: {tmp_path}/b'):
    run(tmp_path)
  with pytest.raises(InputError, match='no such folder'):
    run(tmp_path / 'gone')


def test_runs_are_found_through_links_once_and_not_inside_runs(tmp_path):
  make_run(tmp_path / 'elsewhere' / 'a')
  below = tmp_path / 'runs'
  make_run(below / 'b')
  make_run(below / 'b' / 'samples' / 'c')  # Not a run: a sample set may hold anything.
  make_run(below / '.trash' / 'd')
  make_run(below / 'report' / 'e')
  (below / 'link').symlink_to(tmp_path / 'elsewhere')
  (below / 'b' / 'loop').symlink_to(below)
  ((_, rows),) = markdown_tables(run(below))
  assert [row['Model'] for row in rows] == ['b', 'link/a']


def frames_of(value, count=5, rows=10, side=64, channels=1):
  frames = np.zeros((count, rows, side, side, channels), np.uint8)
  return frames + (value + np.arange(count, dtype=np.uint8)[:, None, None, None, None])


def has(picture, value, side=64):
  """Whether a block of one grey stands somewhere."""
  mask = (np.asarray(picture.convert('RGB')) == value).all(axis=-1)
  total = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
  blocks = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
  return bool((blocks == side * side).any())


def test_pictures_of_a_run_show_its_newest_result_with_frames(tmp_path):
  for name, time, value in (('old', '2026-01-01', 50), ('new', '2026-02-01', 90)):
    make_run(tmp_path / 'a', name=name, time=time, frames=frames_of(value))
  make_run(tmp_path / 'a', name='newest', time='2026-03-01')
  folder = run(tmp_path)
  assert sorted(p.name for p in folder.iterdir() if 'panel' in p.name) == ['panel.gif', 'panel.png']
  picture = Image.open(folder / 'panel.png')
  assert [has(picture, value) for value in (50, 90, 94)] == [False, True, True]
  assert Image.open(folder / 'panel.gif').n_frames == 5


def test_models_without_classes_show_samples_whatever_their_labels(tmp_path):
  frames = frames_of(100, count=2, rows=4) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 10
  make_run(tmp_path / 'a', frames=frames, labels=[0] * 4, changes={'num_classes': 0})
  picture = Image.open(run(tmp_path) / 'panel.png')
  assert [has(picture, value) for value in (100, 111, 120, 130)] == [True, True, True, False]


def test_data_of_different_names_or_channels_have_panels_of_their_own(tmp_path):
  make_run(tmp_path / 'a', frames=frames_of(50))
  make_run(tmp_path / 'b', frames=frames_of(60), changes={'num_classes': 0})
  make_run(tmp_path / 'c', frames=frames_of(70, channels=3))
  other = {'label_names': ['ant', 'bee'], 'changes': {'data.name': 'insects-2'}}
  make_run(tmp_path / 'd', frames=frames_of(80, rows=2), **other)
  folder = run(tmp_path)
  assert sorted(p.name for p in folder.glob('panel*')) == [
    *('panel-digits-2.gif', 'panel-digits-2.png', 'panel-digits.gif', 'panel-digits.png'),
    *('panel-insects-2.gif', 'panel-insects-2.png'),
  ]
  shown = {
    name: Image.open(folder / f'panel-{name}.png') for name in ('digits', 'digits-2', 'insects-2')
  }
  found = {n: [v for v in (50, 60, 70, 80) if has(p, v)] for n, p in shown.items()}
  assert found == {'digits': [50, 60], 'digits-2': [70], 'insects-2': [80]}


def test_sizes_of_the_panel_are_those_of_the_config(tmp_path):
  make_run(tmp_path / 'a', frames=frames_of(50, side=88))
  sizes = {}
  for number, snapshots in ((1, 2), (2, 2), (2, 4), (9, 4)):
    folder = run(tmp_path, number, snapshots)
    sizes[number, snapshots] = [
      Image.open(folder / f'panel.{kind}').size for kind in ('png', 'gif')
    ]
  assert sizes[2, 2][0][0] - sizes[1, 2][0][0] == 2 * 90 - 2 + 3 * 88 // 16
  assert sizes[2, 4][0][0] - sizes[2, 2][0][0] == 2 * 2 * 90
  assert sizes[2, 2][1][1] - sizes[1, 2][1][1] == 90
  assert sizes[9, 4][1][1] - sizes[1, 2][1][1] == 8 * 90


def test_what_is_written_is_listed_and_older_files_are_named(tmp_path, capsys):
  lines = [
    {'step': 10, 'loss': 1.0, 'frechet_distance@500': 3.0},
    {'step': 20, 'holdout_loss': 2.0},
  ]
  make_run(tmp_path / 'a', frames=frames_of(50), curves=lines)
  (tmp_path / 'report').mkdir()
  (tmp_path / 'report/scatter-7.png').write_text('old')
  folder = run(tmp_path)
  out = capsys.readouterr().out
  written = out.partition('written:\n')[2].split()
  found = sorted(str(p) for p in folder.iterdir() if p.name != 'scatter-7.png')
  assert sorted(written) == found
  assert {p.name for p in folder.iterdir()} == {
    *('table.md', 'table.csv', 'scatter.png', 'scatter.pdf', 'curves-loss.png', 'curves-loss.pdf'),
    *('curves-frechet_distance-500.png', 'curves-frechet_distance-500.pdf'),
    *('panel.png', 'panel.gif', 'scatter-7.png'),
  }
  assert f'{folder}/scatter-7.png: of an earlier report' in out
  assert out.count('of an earlier report') == 1
  assert '9.495 ± 0.15' in out and 'Frechet distance (dataset_classifier)' in out


def test_a_report_is_the_same_twice(tmp_path):
  lines = [{'step': 10, 'loss': 1.0}, {'step': 20, 'loss': 2.0}]
  make_run(tmp_path / 'a', frames=frames_of(50), curves=lines, published=PUBLISHED)
  first = {p.name: p.read_bytes() for p in run(tmp_path).iterdir()}
  assert first == {p.name: p.read_bytes() for p in run(tmp_path).iterdir()}


# Published numbers as FACTS has them: name, FID, IS, its deviation.
SYSTEMS = {
  'ddpm.py': ('DDPM', 150.0, 4.45, 0.10),
  'ddpm_vae.py': ('DDPM-VAE', 241.9, 3.32, 0.12),
  'ddpm_cfg.py': ('DDPM-CFG', 94.2, 11.21, 0.46),
  'ddpm_vae_cfg.py': ('DDPM-VAE-CFG', 189.5, 5.79, 0.30),
  'ddim.py': ('DDIM', 152.1, 5.59, 0.25),
  'ddim_vae_cfg.py': ('DDIM-VAE-CFG', 168.2, 5.29, 0.15),
  'dit_cfg.py:8': ('DiT-VAE-CFG-8', 313.3, 1.78, 0.02),
  'dit_cfg.py:12': ('DiT-VAE-CFG-12', 167.7, 6.11, 0.20),
}


CONFIGS = sorted(
  p.name
  for p in (Path(__file__).parents[2] / 'configs').glob('*.py')
  if p.name not in ('dit_cfg.py', 'folder.py')  # The one is named below, the other needs images.
)


@pytest.mark.parametrize('name', [*CONFIGS, 'dit_cfg.py:8', 'dit_cfg.py:12', 'cifar10.py:laptop'])
def test_published_numbers_are_those_of_the_systems_and_of_no_other(name):
  file, _, size = name.partition(':')
  module = importlib.import_module(f'configs.{file.removesuffix(".py")}')
  published = module.get_config(*([size] if size else [])).published
  fields = ('name', 'fid', 'inception_score', 'inception_score_std')
  assert tuple(published[field] for field in fields) == SYSTEMS.get(name, ('', 0.0, 0.0, 0.0))


def test_a_name_without_numbers_is_only_a_name(tmp_path):
  nothing = {**PUBLISHED, 'name': 'ours', 'fid': 0.0, 'inception_score': 0.0}
  make_run(tmp_path / 'a', published=nothing)
  folder = run(tmp_path)
  ((_, (row,)),) = markdown_tables(folder)
  assert row['Model'] == 'ours' and 'published FID' not in row


def test_command_line(tmp_path):
  """As a user types it: no checkpoint, no data, exit codes."""
  make_run(tmp_path / 'runs' / 'dit', published=dit_cfg.PUBLISHED['12'])
  common = ('--config=configs/report.py', '--mode=report')
  done = main(*common, f'--workdir={tmp_path / "runs"}', devices=1)
  assert done.returncode == 0, done.stderr
  assert 'DiT-VAE-CFG-12' in done.stdout and (tmp_path / 'runs/report/table.md').exists()
  assert not (tmp_path / 'runs/config.json').exists()
  (tmp_path / 'empty').mkdir()
  for folder, part in (('empty', 'no run below it'), ('gone', 'no such folder')):
    refused = main(*common, f'--workdir={tmp_path / folder}', devices=1)
    assert refused.returncode == 2 and part in refused.stderr
    assert 'Traceback' not in refused.stderr
  assert not (tmp_path / 'gone').exists()
