"""--mode=prepare and --mode=bench, and how the other modes find what was prepared."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.data import sets
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import hosts
from tests.conftest import tiny_mapping
from tests.support.sources import SMALL, write_tree


def run(mode, folder, tmp_path, **changes):
  run_mode(mode, tiny_mapping(tmp_path, **changes), changes, folder, as_json=False)


PETS = {
  'data.name': 'pets',
  'data.image_size': 8,
  'data.channels': 3,
  'data.holdout': 0,
  'num_classes': 3,
  'train.batch_size': 8,
}


@pytest.fixture
def pets(tmp_path):
  """Flags of a small set of the user's own."""
  return {**PETS, 'data.source': str(write_tree(tmp_path / 'pets', SMALL))}


def test_prepare_tells_and_draws_what_it_made(tmp_path, pets, capsys):
  (tmp_path / 'pets' / 'train' / 'cat' / '0001.jpg').write_bytes(b'')
  (tmp_path / 'pets' / 'train' / 'cat' / 'list.txt').write_text('')
  run('prepare', tmp_path / 'run', tmp_path, **pets, **{'data.max_bad_fraction': 0.1})
  out = capsys.readouterr().out
  for part in (
    'pets: 8x8x3, resized by box-halve, bicubic, centre crop; fingerprint ',
    "class list 'all', 3 classes, labels in sorted order: cat, dog, eel (digest ",
    'train        12        3         3 (eel)        5 (cat)',
    'holdout       6        3         2 (cat)        2 (cat)',
    'bad files, each replaced by the next image of its class: 1\n',
    'train/cat/0001.jpg: empty',
    'note: left out, files that are no images by their names: 1, such as train/cat/list.txt',
  ):
    assert part in out, out
  described = json.loads((tmp_path / 'run' / 'data.json').read_text())
  assert described['images_per_class']['train'] == [5, 4, 3]
  assert len(described['bad_files']) == 1 and described['label_names'] == ['cat', 'dog', 'eel']
  assert Image.open(tmp_path / 'run' / 'data.png').width > 3 * 96


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run on a small set of the user's own."""
  tmp_path = tmp_path_factory.mktemp('pets')
  source = {'data.source': str(write_tree(tmp_path / 'pets', SMALL))}
  run('train', tmp_path / 'run', tmp_path, **PETS, **source)
  return tmp_path


@pytest.fixture
def copied(trained, tmp_path):
  """A copy of it, and its flags."""
  shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
  return {**PETS, 'data.source': str(tmp_path / 'pets')}


def test_a_run_names_its_data_and_samples_without_them(tmp_path, copied):
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())
  ((folder, meta),) = sets.prepared(tmp_path / 'data').items()
  assert stored['data']['fingerprint'] == meta['fingerprint']
  shutil.rmtree(folder)
  flags = {**copied, 'data.dir': str(tmp_path / 'data')}
  run('sample', tmp_path / 'run', tmp_path, **flags)
  assert Image.open(tmp_path / 'run' / 'samples' / 'ddim3-cfg1' / 'grid.png').height > 3 * 48
  with pytest.raises(InputError, match=f'with fingerprint {meta["fingerprint"]}'):
    run('evaluate', tmp_path / 'run', tmp_path, **flags)


def test_a_run_goes_on_with_its_own_data_only(tmp_path, copied, capsys):
  more = write_tree(tmp_path / 'more', {**SMALL, 'train/cat': 7})
  changed = {**copied, 'data.source': str(more)}
  run('prepare', tmp_path / 'other', tmp_path, **changed)
  before = (tmp_path / 'run' / 'data.json').read_text()
  run('prepare', tmp_path / 'run', tmp_path, **changed)
  assert 'was trained on other data and keeps their description' in capsys.readouterr().out
  assert (tmp_path / 'run' / 'data.json').read_text() == before
  longer = {**changed, 'train.num_steps': 6}
  run(
    'train', tmp_path / 'run', tmp_path, **longer
  )  # Two sets fit; the run knows which is its own.
  assert 'resumed at step 4' in capsys.readouterr().out
  with pytest.raises(InputError, match='2 prepared sets'):  # Which of them, the source would say.
    run('train', tmp_path / 'new', tmp_path, **{**longer, 'data.source': ''})
  other = json.loads((tmp_path / 'other' / 'data.json').read_text())['fingerprint']
  with pytest.raises(InputError, match=r'data\.fingerprint: trained with'):
    run('train', tmp_path / 'run', tmp_path, **longer, **{'data.fingerprint': other})


def test_damaged_data_stop_a_run_before_it_starts(tmp_path, pets):
  run('prepare', tmp_path / 'run', tmp_path, **pets)
  path = next((tmp_path / 'data').glob('*/images.npy'))
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)
  with pytest.raises(DamagedError, match=f'{path}: 1 of 1 parts') as caught:
    run('train', tmp_path / 'run', tmp_path, **pets)
  assert caught.value.exit_code == 3
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_nothing_held_out(tmp_path, pets):
  flat = write_tree(tmp_path / 'flat', {'a': 9, 'b': 9, 'c': 9})
  with pytest.raises(InputError, match=r'no held-out images.*config\.data\.holdout=NUMBER'):
    run('train', tmp_path / 'run', tmp_path, **{**pets, 'data.source': str(flat)})


def test_bench_measures_every_reader(tmp_path, capsys):
  small = {'bench.repeats': 2, 'bench.data.batches': 3, 'bench.data.batch_size': 8}
  files = {'bench.data.num_files': 24, 'bench.data.num_photos': 6}
  run('bench', tmp_path / 'run', tmp_path, **small, **files)
  found = json.loads((tmp_path / 'run' / 'bench-data.json').read_text())
  assert list(found['data']) == [
    'prepared data',
    'folder of JPEG files, tf.data',
    'TFDS, shuffled stream',
    'TFDS, random access',
  ]
  assert len(found['preparation']) >= 2
  for speeds in (*found['data'].values(), *found['preparation'].values()):
    assert len(speeds) == 2 and np.min(speeds) > 0
  out = capsys.readouterr().out
  assert 'batches of 8 images 8x8x1 delivered to the step' in out
  assert sorted(p.name for p in (tmp_path / 'run').iterdir()) == [
    'bench-data.json',
    'data.json',
    'data.png',
  ]


def test_bench_refuses_several_processes(tmp_path, digits, monkeypatch):
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  with pytest.raises(InputError, match='--mode=bench: got 2 processes') as stop:
    run('bench', tmp_path / 'run', tmp_path, **{'data.dir': str(digits)})
  assert stop.value.on_all
