"""The report of made-up runs: what is found, damage named, pictures and the command."""

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import dit_cfg
from diffusion_jax.errors import DamagedError, InputError
from tests.support.run_folders import (
  PUBLISHED,
  make_frames,
  make_run,
  markdown_tables,
  report_of,
  write,
)
from tests.test_command import main


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
  ((_, rows),) = markdown_tables(report_of(tmp_path))
  assert [row['Model'] for row in rows] == ['a', 'e', 'f']
  out = capsys.readouterr().out
  for path, reason in {
    'b/eval/ddim50-cfg2.json': 'damaged',
    'c/config.json': 'not the config of a run',
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
    report_of(tmp_path)


def test_no_run_says_what_one_is_and_how_to_make_it(tmp_path):
  with pytest.raises(InputError) as error:
    report_of(tmp_path)
  for part in (
    str(tmp_path),
    'config.json',
    'eval/*.json',
    '--mode=evaluate',
    '--config=quickstart',
  ):
    assert part in str(error.value)
  assert not (tmp_path / 'report').exists()
  (tmp_path / 'b/checkpoints').mkdir(parents=True)
  write(tmp_path / 'b/config.json', {})
  with pytest.raises(InputError, match=f'not evaluated: {tmp_path}/b'):
    report_of(tmp_path)
  with pytest.raises(InputError, match='no such folder'):
    report_of(tmp_path / 'gone')


def test_runs_are_found_through_links_once_and_not_inside_runs(tmp_path):
  make_run(tmp_path / 'elsewhere' / 'a')
  below = tmp_path / 'runs'
  make_run(below / 'b')
  make_run(below / 'b' / 'samples' / 'c')  # Not a run: a sample set may hold anything.
  make_run(below / '.trash' / 'd')
  make_run(below / 'report' / 'e')
  (below / 'link').symlink_to(tmp_path / 'elsewhere')
  (below / 'b' / 'loop').symlink_to(below)
  ((_, rows),) = markdown_tables(report_of(below))
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
  folder = report_of(tmp_path)
  assert sorted(p.name for p in folder.iterdir() if 'panel' in p.name) == ['panel.gif', 'panel.png']
  picture = Image.open(folder / 'panel.png')
  assert [has(picture, value) for value in (50, 90, 94)] == [False, True, True]
  assert Image.open(folder / 'panel.gif').n_frames == 5


def test_models_without_classes_show_samples_whatever_their_labels(tmp_path):
  frames = frames_of(100, count=2, rows=4) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 10
  make_run(tmp_path / 'a', frames=frames, labels=[0] * 4, changes={'num_classes': 0})
  picture = Image.open(report_of(tmp_path) / 'panel.png')
  assert [has(picture, value) for value in (100, 111, 120, 130)] == [True, True, True, False]


def test_data_of_different_names_or_channels_have_panels_of_their_own(tmp_path):
  make_run(tmp_path / 'a', frames=frames_of(50))
  make_run(tmp_path / 'b', frames=frames_of(60), changes={'num_classes': 0})
  make_run(tmp_path / 'c', frames=frames_of(70, channels=3))
  other = {'label_names': ['ant', 'bee'], 'changes': {'data.name': 'insects-2'}}
  make_run(tmp_path / 'd', frames=frames_of(80, rows=2), **other)
  folder = report_of(tmp_path)
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
    folder = report_of(tmp_path, number, snapshots)
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
  folder = report_of(tmp_path)
  out = capsys.readouterr().out
  written = out.partition('written:\n')[2].split()
  found = sorted(str(p) for p in folder.iterdir() if p.name != 'scatter-7.png')
  assert sorted(written) == found
  assert {p.name for p in folder.iterdir()} == {
    *('table.md', 'table.csv', 'scatter.png', 'scatter.pdf', 'curves-loss.png', 'curves-loss.pdf'),
    *('curves-frechet_distance-500.png', 'curves-frechet_distance-500.pdf'),
    *('panel.png', 'panel.gif', 'scatter-7.png'),
  }
  assert f'{folder}/scatter-7.png: from an earlier report' in out
  assert out.count('from an earlier report') == 1
  assert '9.495 ± 0.15' in out and 'Frechet distance (dataset_classifier)' in out


def test_a_report_is_the_same_twice(tmp_path):
  lines = [{'step': 10, 'loss': 1.0}, {'step': 20, 'loss': 2.0}]
  make_run(tmp_path / 'a', frames=frames_of(50), curves=lines, published=PUBLISHED)
  first = {p.name: p.read_bytes() for p in report_of(tmp_path).iterdir()}
  assert first == {p.name: p.read_bytes() for p in report_of(tmp_path).iterdir()}


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
  folder = report_of(tmp_path)
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
