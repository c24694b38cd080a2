"""Several processes make the set, and the latents, that one makes: threads take their places here."""

import contextlib
import itertools
import json
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffusion_jax.data import latents, packed, packing, sets, shares
from diffusion_jax.data import prepare as prepare_module
from diffusion_jax.data.decode import BadImage
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import InputError
from tests.data.test_latents import AUTOENCODER, SHAPE, encode_batch
from tests.support import crowd
from tests.support.sources import as_tar, encoded, picture, write_tree

COUNTS = {
  'train/cat': 16,
  'train/dog': 15,
  'train/eel': 9,
  'val/cat': 2,
  'val/dog': 2,
  'val/eel': 2,
}
RECIPE = Recipe('pets', 16, 3, 'all', 'sorted', 0, 0)


def made(source, folder, **options):
  return prepare(str(source), RECIPE, folder, **{'max_bad_fraction': 0.1, 'workers': 1, **options})


def together(count, source, folder, **options):
  return crowd.run(count, lambda number: made(source, folder, **options))


def files_of(folder):
  """What a set holds; its meta without the time at which it was made."""
  found = {path.name: path.read_bytes() for path in folder.iterdir()}
  meta = packed.read_meta(folder)
  for recipe in meta['made']:
    del recipe['time']
  return {**found, 'meta.json': meta}


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
  """tqdm counts its bars, which threads must not do at once."""
  bar = SimpleNamespace(update=lambda count: None)
  for module in (latents, packing):
    monkeypatch.setattr(module, 'tqdm', lambda **options: contextlib.nullcontext(bar))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """46 images: an empty one, and two PNG files that are JPEG by name."""
  root = write_tree(tmp_path_factory.mktemp('pets'), COUNTS)
  (root / 'train' / 'dog' / '0003.jpg').write_bytes(b'')
  for name in ('train/cat/0001.jpg', 'val/eel/0001.jpg'):
    (root / name).write_bytes(encoded(picture(7), 'PNG'))
  (root / 'val' / 'cat' / '0000.jpg').write_bytes(encoded(picture(8, (12, 12))))
  return root


@pytest.fixture(scope='module')
def alone(root, tmp_path_factory):
  return files_of(made(root, tmp_path_factory.mktemp('alone'))[0])


@pytest.fixture
def decoded(monkeypatch):
  """The rows that each thread decodes, in tasks of three that are noted at once."""
  monkeypatch.setattr(packing, 'TASK_IMAGES', 3)
  monkeypatch.setattr(packing, 'JOURNAL_SECONDS', -1)
  rows, task = {}, packing.pack_task

  def pack_task(target, items):
    result = task(target, items)
    rows.setdefault(jax.process_index(), []).extend(result.rows)
    return result

  monkeypatch.setattr(packing, 'pack_task', pack_task)
  return rows


def rows_of(decoded):
  return sorted(itertools.chain.from_iterable(decoded.values()))


@pytest.mark.parametrize('count', [2, 3, 60])
@pytest.mark.parametrize('form', ['folder', 'tar'])
def test_several_processes_prepare_what_one_does(root, alone, tmp_path, decoded, count, form):
  source = root if form == 'folder' else as_tar(root, tmp_path / 'pets.tar')
  results = together(count, source, tmp_path / 'data')
  assert all(result == results[0] for result in results)
  folder, meta = results[0]
  found = files_of(folder)
  assert found['images.npy'] == alone['images.npy'] and found['labels.npy'] == alone['labels.npy']
  assert found.keys() == alone.keys() and list(folder.parent.iterdir()) == [folder]
  if form == 'folder':
    assert found == alone
  assert len(meta['mislabelled_files']) == 2 and len(meta['bad_files']) == 1
  assert rows_of(decoded) == sorted(set(range(46)) - {19})
  assert len(decoded) == min(count, 46)
  again = together(2, source, tmp_path / 'data')
  assert again[0][0] == again[1][0] == folder


class Stopped(InputError):
  """Instead of a signal, which no thread gets."""


def stop_after(monkeypatch, images):
  """Process 1 stops after so many images, the others then."""
  decode, count = packing.to_pixels, [0]

  def to_pixels(*arguments):
    if jax.process_index() == 1:
      count[0] += 1
      if count[0] > images:
        raise Stopped('stopped')
    return decode(*arguments)

  monkeypatch.setattr(packing, 'to_pixels', to_pixels)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_another_number_of_processes_goes_on(
  root, alone, tmp_path, decoded, monkeypatch, capsys, count
):
  with monkeypatch.context() as patched:
    stop_after(patched, 9)
    errors = together(3, root, tmp_path / 'data')
  assert all(isinstance(error, InputError) for error in errors), errors
  (work,) = (tmp_path / 'data').glob('.preparing-*')
  assert work.is_dir() and sets.prepared(tmp_path / 'data') == {}
  journal = packing.Journal(work / 'images.npy')
  assert sorted(journal.rows) == rows_of(decoded)
  assert len(decoded[1]) == 8  # And the empty one.
  first = dict(decoded)
  decoded.clear()
  capsys.readouterr()
  results = (
    together(count, root, tmp_path / 'data') if count > 1 else [made(root, tmp_path / 'data')]
  )
  assert files_of(results[0][0]) == alone
  assert f'going on: {len(journal.rows)} images' in capsys.readouterr().out
  assert not set(rows_of(decoded)) & set(rows_of(first))
  assert list((tmp_path / 'data').glob('.*')) == []


def test_bad_files_of_all_processes_count_together(root, tmp_path, monkeypatch):
  """Each has fewer than are allowed."""
  decode = packing.to_pixels
  monkeypatch.setattr(packing, 'TASK_IMAGES', 1)
  seen = {0: 0, 1: 0}

  def to_pixels(*arguments):
    seen[jax.process_index()] += 1
    if seen[jax.process_index()] <= 4:
      raise BadImage('bad')
    return decode(*arguments)

  monkeypatch.setattr(packing, 'to_pixels', to_pixels)
  first, second = together(2, root, tmp_path / 'data', max_bad_fraction=0.11)  # 5 of 46.
  assert '9 bad files among 46 images' in str(first) and first.exit_code == second.exit_code == 2


def test_what_one_process_cannot_write_ends_all_with_advice(root, tmp_path, monkeypatch):
  write = packing.os.pwrite

  def pwrite(*arguments):
    if jax.process_index() == 1:
      raise OSError(28, 'No space left on device')
    return write(*arguments)

  monkeypatch.setattr(packing.os, 'pwrite', pwrite)
  first, second = together(2, root, tmp_path / 'data')
  assert re.match(r'process 1: config\.data\.dir: .*make room.*35,328 bytes are needed', str(first))
  assert isinstance(second, InputError)


def test_a_process_that_sees_another_source_decodes_nothing(
  root, alone, tmp_path, decoded, monkeypatch, capsys
):
  plan = prepare_module.make_plan

  def make_plan(source, recipe):
    if jax.process_index() == 1:
      raise InputError(f'{source}: not there')
    return plan(source, recipe)

  monkeypatch.setattr(prepare_module, 'make_plan', make_plan)
  results = together(3, root, tmp_path / 'data')
  assert files_of(results[1][0]) == alone and set(decoded) == {0, 2}
  assert 'process 1 decodes nothing' in capsys.readouterr().out


def test_hosts_without_a_common_folder_prepare_nothing(root, tmp_path):
  errors = crowd.run(2, lambda number: made(root, tmp_path / str(number)))
  for error in errors:
    assert re.match(
      r'config\.data\.dir=.*/\d: not the folder of process 0 on process 1; .*copy', str(error)
    )


@pytest.mark.parametrize('fault', ['pixels', 'journal'])
def test_what_is_lost_between_hosts_is_decoded_again(
  root, alone, tmp_path, monkeypatch, capsys, fault
):
  """As by storage that mixes up the pages of two writers, or shows a new file late."""
  finish = prepare_module._Job.finish

  def spoiled(job, found):
    if fault == 'journal':
      job.images.with_name('journal-1').unlink()
    else:
      np.load(job.images, mmap_mode='r+')[[5, 40]] = 0
    return finish(job, found)

  monkeypatch.setattr(prepare_module._Job, 'finish', spoiled)
  results = together(2, root, tmp_path / 'data')
  assert files_of(results[0][0]) == alone
  lost = 2 if fault == 'pixels' else 23
  assert f'{lost} images did not arrive whole' in capsys.readouterr().out


@pytest.fixture(scope='module')
def image_set(root, tmp_path_factory):
  return made(root, tmp_path_factory.mktemp('images'))


def encode(folder, meta, function=encode_batch, mirrored=True):
  def small(images):
    return function(images[:, ::2, ::2])

  return latents.encode(folder, meta, AUTOENCODER, SHAPE, small, batch_size=4, mirrored=mirrored)


def content(image_set):
  """The files of the latents, which are removed."""
  (own,) = image_set[0].glob('latents-*')
  found = {path.name: path.read_bytes() for path in own.iterdir()}
  for path in own.iterdir():
    path.unlink()
  own.rmdir()
  assert not list(image_set[0].glob('.encoding-*'))
  return found


@pytest.fixture
def latents_alone(image_set):
  encode(*image_set)
  return content(image_set)


@pytest.mark.parametrize('count', [2, 5, 30])
def test_several_processes_encode_what_one_does(image_set, latents_alone, count):
  batches = {}

  def counted(images):
    batches[jax.process_index()] = batches.get(jax.process_index(), 0) + 1
    return encode_batch(images)

  results = crowd.run(count, lambda number: encode(*image_set, function=counted))
  assert all(result == results[0] for result in results)
  assert content(image_set) == latents_alone
  total = 2 * math.ceil(40 / 4) + math.ceil(6 / 4)
  assert sum(batches.values()) == total
  assert len(batches) == min(count, total)
  assert max(batches.values()) - min(batches.values()) <= 1


@pytest.mark.parametrize('count', [1, 2, 4])
def test_another_number_of_processes_goes_on_encoding(
  image_set, latents_alone, monkeypatch, capsys, count
):
  monkeypatch.setattr(latents, 'NOTE_SECONDS', -1)
  batches = []

  def stopping(images):
    batches.append(jax.process_index())
    if jax.process_index() == 1 and batches.count(1) > 3:
      raise Stopped('stopped')
    return encode_batch(images)

  errors = crowd.run(3, lambda number: encode(*image_set, function=stopping))
  assert all(isinstance(error, InputError) for error in errors), errors
  done = len(batches) - 1
  capsys.readouterr()
  batches.clear()

  def counted(images):
    batches.append(jax.process_index())
    return encode_batch(images)

  if count > 1:
    crowd.run(count, lambda number: encode(*image_set, function=counted))
  else:
    encode(*image_set, function=counted)
  assert content(image_set) == latents_alone
  out = capsys.readouterr().out
  assert 'going on: ' in out and f'of {len(batches)} missing batches' in out
  # Of each process that was stopped, those are lost that it had not waited for.
  assert 0 <= len(batches) - (22 - done) <= 3 * latents.IN_FLIGHT


@pytest.mark.parametrize('fault', ['rows', 'note'])
def test_what_is_lost_between_hosts_is_encoded_again(
  image_set, latents_alone, monkeypatch, capsys, fault
):
  noted = latents.noted
  calls = []

  def spoiled(work):
    calls.append(work)
    if len(calls) == 2:  # At the end.
      if fault == 'note':
        (work / 'done-1').unlink()
      else:
        np.load(work / 'posterior.npy', mmap_mode='r+')[50] = 0
    return noted(work)

  monkeypatch.setattr(latents, 'noted', spoiled)
  crowd.run(2, lambda number: encode(*image_set))
  assert content(image_set) == latents_alone
  assert 'did not arrive whole' in capsys.readouterr().out


def test_an_autoencoder_that_diverges_on_one_process_ends_all(image_set):
  def bad(images):
    found = encode_batch(images)
    return np.full_like(found, np.nan) if jax.process_index() == 1 else found

  for error in crowd.run(2, lambda number: encode(*image_set, function=bad)):
    assert isinstance(error, InputError) and 'not finite' in str(error)


def test_shares_are_contiguous_and_whole():
  for length in (0, 1, 7, 23):
    for count in (1, 2, 5, 30):
      parts = [shares.share(range(length), n, count) for n in range(count)]
      assert [row for part in parts for row in part] == list(range(length))
      assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_pieces_are_the_runs_of_rows():
  rows = np.asarray([0, 1, 2, 5, 7, 8])
  assert shares.pieces_of(rows) == [[0, 3], [5, 6], [7, 9]]
  np.testing.assert_array_equal(shares.rows_of([[0, 3], [5, 6], [7, 9]]), rows)
  assert shares.pieces_of(rows[:0]) == [] and len(shares.rows_of([])) == 0
  assert shares.missing(10, [[0, 3], [2, 4], [8, 10]]) == [[4, 8]]
  assert json.dumps(shares.missing(3, [])) == '[[0, 3]]'


def test_batches_cross_no_part():
  assert list(shares.cut([5, 3], [[0, 8]], 4)) == [(0, 4), (4, 5), (5, 8)]
  assert list(shares.cut([5, 3], [[3, 6], [7, 8]], 4)) == [(3, 5), (5, 6), (7, 8)]
