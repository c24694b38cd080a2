"""What prepare promises: every image in its place, whatever is bad, killed or full."""

import dataclasses
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import packed, packing, sets
from diffusion_jax.data import prepare as prepare_module
from diffusion_jax.data.decode import center_crop
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.data.readers import tree
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files as writing
from diffusion_jax.runtime import lease
from tests.support.sources import SMALL, as_tar, as_zip, digits, encoded, picture, write_tree

ROOT = Path(__file__).parents[2]
RECIPE = Recipe('pets', 16, 3, 'all', 'sorted', 0, 0)


def made(source, folder, recipe=RECIPE, max_bad_fraction=0.0, workers=1):
  return prepare(str(source), recipe, folder, max_bad_fraction=max_bad_fraction, workers=workers)


@pytest.fixture
def root(tmp_path):
  return write_tree(tmp_path / 'pets', SMALL)


def test_pixels_labels_and_order_are_those_of_the_files(root, tmp_path):
  folder, meta = made(root, tmp_path / 'data')
  assert (meta['num_train'], meta['num_holdout']) == (12, 6)
  assert meta['label_names'] == ['cat', 'dog', 'eel']
  for split, top in (('train', 'train'), ('holdout', 'val')):
    source = packed.open_split(folder, meta, split)
    files = sorted((root / top).rglob('*.jpg'))
    batch = source.read(np.arange(len(files)))
    assert source.num_examples == len(files)
    for path, image, label in zip(files, batch['image'], batch['label']):
      assert path.parent.name == meta['label_names'][label]
      np.testing.assert_array_equal(image, center_crop(Image.open(path), 16))
  assert sorted(path.name for path in folder.iterdir()) == ['images.npy', 'labels.npy', 'meta.json']


def test_the_same_images_are_one_set_whatever_they_come_in(root, tmp_path, capsys):
  folder, meta = made(root, tmp_path / 'data')
  capsys.readouterr()
  assert made(root, tmp_path / 'data')[0] == folder
  assert 'prepared already' in capsys.readouterr().out
  for source in (as_tar(root, tmp_path / 'p.tgz', 'w:gz'), as_zip(root, tmp_path / 'p.zip')):
    for message in ('the same images are there already', 'prepared already'):
      assert made(source, tmp_path / 'data')[0] == folder
      assert message in capsys.readouterr().out
    other, found = made(source, tmp_path / source.suffix)
    assert found['fingerprint'] == meta['fingerprint'] and other.name == folder.name
  sources = [made['source'] for made in packed.read_meta(folder)['made']]
  assert sources == [str(root), str(tmp_path / 'p.tgz'), str(tmp_path / 'p.zip')]


def test_a_set_is_found_under_every_recipe_that_made_it(root, tmp_path):
  names = tmp_path / 'list.txt'
  names.write_text('cat\ndog\neel\n')
  listed = dataclasses.replace(RECIPE, class_list=str(names), split_seed=3)
  folder, _ = made(root, tmp_path / 'data')
  assert made(root, tmp_path / 'data', listed)[0] == folder
  for recipe in (RECIPE, listed):
    assert sets.find(tmp_path / 'data', recipe.mapping(), '')[0] == folder


def test_a_damaged_set_never_replaces_a_good_one(root, tmp_path):
  folder, _ = made(root, tmp_path / 'data')
  images = folder / 'images.npy'
  images.write_bytes(images.read_bytes()[:-1] + b'x')
  with pytest.raises(DamagedError, match=str(images)):
    made(as_zip(root, tmp_path / 'p.zip'), tmp_path / 'data')
  shutil.rmtree(folder)
  made(tmp_path / 'p.zip', tmp_path / 'data')


def test_other_content_is_another_set_even_at_the_same_size(tmp_path, capsys):
  """Files of equal name and size: in another folder, or changed where they are."""
  roots = [tmp_path / 'one', tmp_path / 'two']
  for seed, root in enumerate(roots):
    (root / 'a').mkdir(parents=True)
    (root / 'a' / 'x.bmp').write_bytes(encoded(picture(seed), 'BMP'))
  found = [made(root, tmp_path / 'data')[1]['fingerprint'] for root in roots]
  (roots[0] / 'a' / 'x.bmp').write_bytes(encoded(picture(2), 'BMP'))
  found.append(made(roots[0], tmp_path / 'data')[1]['fingerprint'])
  assert len(set(found)) == 3


def test_the_fingerprint_sees_pixels_classes_names_order_and_size(root, tmp_path):
  names = tmp_path / 'list.txt'
  found = []

  def add(**changes):
    recipe = dataclasses.replace(RECIPE, **changes)
    found.append(made(root, tmp_path / 'data', recipe)[1]['fingerprint'])

  add()
  add(image_size=15)
  add(channels=1)
  names.write_text('eel\ncat\ndog\n')
  add(class_list=str(names), label_order='file')
  names.write_text('eel\ncat\tTom\ndog\n')
  add(class_list=str(names), label_order='file')
  names.write_text('eel\ncat\tFelix\ndog\n')
  add(class_list=str(names), label_order='file')
  (root / 'train' / 'cat' / '0000.jpg').write_bytes(encoded(picture(77)))
  add()
  assert len(set(found)) == 7


def test_a_holdout_is_split_off_by_class_and_seed(tmp_path):
  root = write_tree(tmp_path / 'set', {'a': 20, 'b': 10})
  whole = made(root, tmp_path / 'whole')
  held = {}
  for seed in (0, 1):
    folder, meta = made(
      root, tmp_path / f'seed{seed}', Recipe('x', 16, 3, 'all', 'sorted', 6, seed)
    )
    parts = {s: packed.open_split(folder, meta, s) for s in packed.SPLITS}
    np.testing.assert_array_equal(np.bincount(parts['train'].labels), [16, 8])
    np.testing.assert_array_equal(np.bincount(parts['holdout'].labels), [4, 2])
    together = np.concatenate([parts[s].values for s in packed.SPLITS])
    all_images = packed.open_split(*whole, 'train').values
    assert sorted(map(bytes, together)) == sorted(map(bytes, all_images))
    held[seed] = {bytes(image) for image in parts['holdout'].values}
  assert held[0] != held[1]


@pytest.mark.parametrize(
  'counts, holdout, message',
  [
    (SMALL, 3, r'holdout: got 3, allowed 0: .* has a held-out set of its own'),
    ({'a': 5, 'b': 5}, 1, r'holdout: got 1, allowed 2\.\.8'),
    ({'a': 5, 'b': 5}, 9, r'holdout: got 9, allowed 2\.\.8'),
    ({'a': 1, 'b': 5}, 2, r'got 2; .*, but the smallest class, a, has 1 images'),
    ({'a': 60, 'b': 2}, 2, r'got 2, too few: .*, but the smallest class, b, has 2 images'),
  ],
)
def test_holdouts_that_cannot_be(tmp_path, counts, holdout, message):
  root = write_tree(tmp_path / 'set', counts)
  with pytest.raises(InputError, match=message):
    made(root, tmp_path / 'data', Recipe('x', 16, 3, 'all', 'sorted', holdout, 0))


@pytest.mark.slow
def test_one_bad_file_among_10000_changes_neither_length_nor_order(tmp_path):
  root = tmp_path / 'many'
  content = {
    c: [encoded(picture(10 * i + j, (8, 8))) for j in range(10)] for i, c in enumerate('ab')
  }
  for folder, files in content.items():
    (root / folder).mkdir(parents=True)
    for i in range(5000):
      (root / folder / f'{i:04d}.jpg').write_bytes(files[i % 10])
  recipe = Recipe('many', 8, 3, 'all', 'sorted', 0, 0)
  good = packed.open_split(*made(root, tmp_path / 'good', recipe), 'train')
  torn = root / 'a' / '1234.jpg'
  torn.write_bytes(torn.read_bytes()[:-150])
  folder, meta = made(root, tmp_path / 'bad', recipe, max_bad_fraction=1e-3)
  source = packed.open_split(folder, meta, 'train')
  assert len(meta['bad_files']) == 1
  report = meta['bad_files'][0]
  assert report['file'] == str(torn) and 'damaged' in report['reason'] and report['row'] == 1234
  assert report['shows'] == str(root / 'a' / '1235.jpg')
  np.testing.assert_array_equal(source.labels, good.labels)
  assert source.num_examples == 10_000
  others = np.arange(10_000) != 1234
  np.testing.assert_array_equal(source.values[others], good.values[others])
  np.testing.assert_array_equal(source.values[1234], good.values[1235])


def test_too_many_bad_files_stop_and_are_listed_and_can_be_repaired(root, tmp_path):
  torn = root / 'train' / 'cat' / '0001.jpg'
  whole = torn.read_bytes()
  torn.write_bytes(b'')
  (root / 'train' / 'eel' / '0002.jpg').write_bytes(b'no image at all')
  with pytest.raises(InputError) as caught:
    made(root, tmp_path / 'data', max_bad_fraction=0.1)
  text = str(caught.value)
  assert '2 bad files among 18 images' in text and 'max_bad_fraction 0.1' in text
  assert f'{torn}: empty' in text and '0002.jpg: not an image of a known format' in text
  assert sets.prepared(tmp_path / 'data') == {}
  torn.write_bytes(whole)
  _, meta = made(root, tmp_path / 'data', max_bad_fraction=0.1)
  assert [Path(item['file']).name for item in meta['bad_files']] == ['0002.jpg']


def test_a_class_of_bad_files_only_is_refused(root, tmp_path):
  for path in (root / 'val' / 'dog').iterdir():
    path.write_bytes(b'')
  with pytest.raises(InputError, match='class dog has no readable holdout image'):
    made(root, tmp_path / 'data', max_bad_fraction=0.5)


def test_wrong_names_are_told(tmp_path):
  root = write_tree(tmp_path / 'set', {'train/n01440764': 3, 'train/n01443537': 3})
  (root / 'train' / 'n01440764' / 'x.png').write_bytes(encoded(picture(5)))  # A JPEG.
  moved = root / 'train' / 'n01440764' / 'n01443537_12.JPEG'
  moved.write_bytes(encoded(picture(6)))
  _, meta = made(root, tmp_path / 'data', max_bad_fraction=0.2)
  assert [item['reason'] for item in meta['mislabelled_files']] == ['named .png, is JPEG']
  assert [item['reason'] for item in meta['bad_files']] == [
    'mislabelled (named n01443537, lies in class n01440764)'
  ]
  assert meta['label_names'] == ['tench', 'goldfish']


def descendants(pid):
  """Process numbers of children and theirs."""
  found = []
  for path in Path(f'/proc/{pid}/task').glob('*/children'):
    for child in path.read_text().split():
      found += [int(child), *descendants(int(child))]
  return found


def is_running(pid):
  try:
    return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
  except OSError:
    return False


def test_a_killed_preparation_goes_on_and_ends_the_same(tmp_path):
  """kill -9 while two processes decode; orphans end; the second run does the rest only."""
  root = tmp_path / 'large'
  (root / 'a').mkdir(parents=True)
  files = [encoded(picture(i, (1100, 1000))) for i in range(5)]
  for i in range(300):
    (root / 'a' / f'{i:04d}.jpg').write_bytes(files[i % 5] + b' ' * i)
  program = (
    'import sys; from tests.data.test_prepare import *\n'
    'packing.ALONE_SECONDS, packing.JOURNAL_SECONDS = 0, 0.2\n'
    'made(sys.argv[1], Path(sys.argv[2]), workers=2)'
  )
  command = [sys.executable, '-c', program, str(root)]
  interrupted = tmp_path / 'interrupted'
  process = subprocess.Popen([*command, str(interrupted)], cwd=ROOT, stderr=subprocess.DEVNULL)

  def journaled():
    return [
      row
      for path in interrupted.glob('.preparing-*/journal')
      for line in path.read_text().splitlines()
      if line.strip()
      for row in json.loads(line)[0]
    ]

  deadline = time.monotonic() + 60
  while len(journaled()) < 60 and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.05)
  assert process.poll() is None and journaled()
  workers = descendants(process.pid)
  assert len(workers) >= 2
  process.send_signal(signal.SIGKILL)
  process.wait()
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_running, workers))
  assert sets.prepared(interrupted) == {}  # Half a set is not found as a set.
  done = len(set(journaled()))
  assert 0 < done < 300
  journal = next(interrupted.glob('.preparing-*/journal'))
  journal.write_bytes(journal.read_bytes() + b'[[0, 1\xff')  # As if killed while writing.

  again = subprocess.run(
    [*command, str(interrupted)], cwd=ROOT, capture_output=True, text=True, check=True
  )
  went_on = re.search(r'going on: (\d+) images', again.stdout)
  assert int(went_on[1]) == done
  whole_folder, whole = made(root, tmp_path / 'whole', workers=2)
  ((folder, meta),) = sets.prepared(interrupted).items()
  assert meta['fingerprint'] == whole['fingerprint']
  assert (folder / 'images.npy').read_bytes() == (whole_folder / 'images.npy').read_bytes()


@pytest.mark.parametrize(
  'place', ['write_meta', 'chunk_digests', 'substitutes_for', 'sync', 'replace']
)
def test_killed_after_decoding_it_goes_on_too(root, tmp_path, monkeypatch, place):
  """Stopped dead at the named call, between the last image and the end."""
  (root / 'train' / 'cat' / '0001.jpg').write_bytes(b'')
  whole = made(root, tmp_path / 'whole', max_bad_fraction=0.1)[1]

  class Killed(BaseException):
    pass

  def kill(*arguments):
    raise Killed

  rooms = {'substitutes_for': prepare_module, 'sync': writing, 'replace': os}
  monkeypatch.setattr(rooms.get(place, packed), place, kill)
  with pytest.raises(Killed):
    made(root, tmp_path / 'data', max_bad_fraction=0.1)
  monkeypatch.undo()
  assert sets.prepared(tmp_path / 'data') == {}
  folder, meta = made(root, tmp_path / 'data', max_bad_fraction=0.1)
  assert meta['fingerprint'] == whole['fingerprint'] and not folder.name.startswith('.')
  assert sets.find(tmp_path / 'data', RECIPE.mapping(), '')[0] == folder


def test_a_journal_without_its_images_is_void(root, tmp_path, monkeypatch, capsys):
  whole = made(root, tmp_path / 'whole')[1]

  def kill(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(packed, 'write_meta', kill)
  with pytest.raises(KeyboardInterrupt):
    made(root, tmp_path / 'data')
  monkeypatch.undo()
  next((tmp_path / 'data').glob('.preparing-*/images.npy')).unlink()
  capsys.readouterr()
  assert made(root, tmp_path / 'data')[1]['fingerprint'] == whole['fingerprint']
  assert 'going on' not in capsys.readouterr().out


def test_images_that_are_listed_but_not_delivered_stop_it(root, tmp_path, monkeypatch):
  payloads = tree.Tree.payloads
  monkeypatch.setattr(tree.Tree, 'payloads', lambda *a: itertools.islice(payloads(*a), 17))
  with pytest.raises(DamagedError, match='1 images are listed but were not found'):
    made(root, tmp_path / 'data')


def test_two_at_once_are_refused(root, tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'RENEWED_EVERY', 0.05)
  inner = []

  def pack(*arguments, **named):
    if not inner:
      inner.append(True)
      with pytest.raises(
        InputError, match=f'preparing .*process {os.getpid()} of host .* since 20'
      ):
        made(root, tmp_path / 'data')
    return original(*arguments, **named)

  original = packing.pack
  monkeypatch.setattr(packing, 'pack', pack)
  folder, _ = made(root, tmp_path / 'data')
  assert inner and list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize('call', ['posix_fallocate', 'pwrite'])
def test_a_full_disk_is_told_before_or_while_writing(root, tmp_path, monkeypatch, call):
  def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, call, full)
  with pytest.raises(
    InputError, match=r'images\.npy: No space left.* 13,824 bytes are needed'
  ) as e:
    made(root, tmp_path / 'data')
  assert str(tmp_path / 'data') in str(e.value)
  monkeypatch.undo()
  assert made(root, tmp_path / 'data')[1]['num_train'] == 12


def test_labels_that_find_no_room_are_named(root, tmp_path, monkeypatch):
  def full(*arguments):
    raise OSError('18 requested and 0 written')  # NumPy's own words, without a number.

  monkeypatch.setattr(np, 'save', full)
  with pytest.raises(InputError, match=r'labels\.npy: No space left.*make room'):
    made(root, tmp_path / 'data')
  monkeypatch.undo()
  assert made(root, tmp_path / 'data')[1]['num_train'] == 12


def test_a_folder_that_cannot_be_written(root):
  with pytest.raises(InputError, match=r'config\.data\.dir: /dev/null/data'):
    made(root, Path('/dev/null/data'))


def test_the_digits_are_scikit_learns_in_the_stated_split(tmp_path):
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  x, y = load_digits(return_X_y=True)
  parts = train_test_split(x, y, test_size=297, stratify=y, random_state=0)
  expected = {'train': (parts[0], parts[2]), 'holdout': (parts[1], parts[3])}
  for split, source in digits(tmp_path).items():
    pixels, labels = expected[split]
    order, found = np.lexsort(pixels.T), source.values.reshape(-1, 64)
    found_order = np.lexsort(found.T)
    np.testing.assert_array_equal(found[found_order], np.round(pixels[order] * 255 / 16))
    np.testing.assert_array_equal(source.labels[found_order], labels[order])
    assert source.values.shape == (len(labels), 8, 8, 1)
