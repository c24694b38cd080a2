"""A prepared set is found by what it is, and never read when it is not what was written."""

import dataclasses
import json

import numpy as np
import pytest

from diffusion_jax.data import packed, sets
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import DamagedError, InputError
from tests.support.sources import SMALL, write_tree

RECIPE = Recipe('pets', 16, 3, 'all', 'sorted', 0, 0)


@pytest.fixture
def data(tmp_path):
  root = write_tree(tmp_path / 'pets', SMALL)
  prepare(str(root), RECIPE, tmp_path / 'data', max_bad_fraction=0, workers=1)
  return tmp_path / 'data'


def the_set(data):
  ((folder, meta),) = sets.prepared(data).items()
  return folder, meta


@pytest.mark.parametrize('split', packed.SPLITS)
def test_contract_of_a_data_source(data, split):
  source = packed.open_split(*the_set(data), split)
  batch = source.read(np.asarray([3, 0, 3]))
  for key, item in source.element.items():
    assert batch[key].shape == (3, *item.shape) and batch[key].dtype == item.dtype
    np.testing.assert_array_equal(batch[key][0], batch[key][2])
  assert not np.array_equal(batch['image'][0], batch['image'][1])
  labels = source.read(np.arange(source.num_examples))['label']
  assert labels.min() == 0 and labels.max() == len(source.label_names) - 1
  other = packed.open_split(*the_set(data), packed.SPLITS[split == 'train'])
  assert source.fingerprint != other.fingerprint
  with pytest.raises(ValueError, match='read-only'):
    source.values[0] = 0


def test_found_by_its_recipe_or_fingerprint(data):
  folder, meta = the_set(data)
  assert sets.find(data, RECIPE.mapping(), '')[0] == folder
  other_list = dataclasses.replace(RECIPE, class_list='cmc')
  assert sets.find(data, other_list.mapping(), meta['fingerprint'])[0] == folder


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'image_size': 32}, "'pets', 32 px.*\n  pets-16-.*: image_size 16, not 32"),
    ({'name': 'cats'}, "name 'pets', not 'cats'"),
    ({'class_list': 'cmc'}, "class_list 'all', not 'cmc'"),
    ({'holdout': 7}, 'holdout 0, not 7'),
  ],
)
def test_what_differs_is_named(data, changes, message):
  recipe = dataclasses.replace(RECIPE, **changes)
  with pytest.raises(InputError, match=message) as caught:
    sets.find(data, recipe.mapping(), '')
  assert str(data) in str(caught.value) and '--mode=prepare' in str(caught.value)


def test_a_fingerprint_that_is_not_there_or_of_another_size(data):
  _, meta = the_set(data)
  with pytest.raises(InputError, match='with fingerprint 0123456789abcdef'):
    sets.find(data, RECIPE.mapping(), '0123456789abcdef')
  larger = dataclasses.replace(RECIPE, image_size=32).mapping()
  with pytest.raises(InputError, match='image_size 16, not 32'):
    sets.find(data, larger, meta['fingerprint'])


def test_nothing_prepared(tmp_path):
  with pytest.raises(InputError, match=r"no prepared data 'pets', 16 px.*; run the same command"):
    sets.find(tmp_path / 'nowhere', RECIPE.mapping(), '')


def test_two_of_one_recipe_must_be_told_apart(data, tmp_path):
  root = write_tree(tmp_path / 'more', {**SMALL, 'train/cat': 6})
  other, meta = prepare(str(root), RECIPE, data, max_bad_fraction=0, workers=1)
  with pytest.raises(InputError, match=f'2 prepared sets(.|\n)*{meta["fingerprint"]}'):
    sets.find(data, RECIPE.mapping(), '')
  assert sets.find(data, RECIPE.mapping(), meta['fingerprint'])[0] == other


def test_a_damaged_set_does_not_hide_a_whole_one(data, tmp_path):
  root = write_tree(tmp_path / 'more', {**SMALL, 'train/cat': 6})
  recipe = dataclasses.replace(RECIPE, name='more')
  other, _ = prepare(str(root), recipe, data, max_bad_fraction=0, workers=1)
  (other / 'meta.json').write_text('torn')
  assert sets.find(data, RECIPE.mapping(), '')[0].name.startswith('pets')
  with pytest.raises(DamagedError, match=str(other)):
    sets.find(data, recipe.mapping(), '')


def test_another_format_is_told(data):
  folder, meta = the_set(data)
  packed.write_meta(folder, {**meta, 'version': 99})
  with pytest.raises(InputError, match='of format 99, this program reads 1'):
    sets.find(data, RECIPE.mapping(), '')


def flip_byte(path, position):
  content = bytearray(path.read_bytes())
  content[position] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize('full', [True, False])
@pytest.mark.parametrize(
  'name, damage',
  [
    ('images.npy', lambda path: flip_byte(path, -100)),
    ('images.npy', lambda path: flip_byte(path, 20)),  # Of the header.
    ('images.npy', lambda path: path.write_bytes(path.read_bytes()[:-1])),
    ('images.npy', lambda path: path.unlink()),
    ('labels.npy', lambda path: flip_byte(path, -4)),
    ('labels.npy', lambda path: path.unlink()),
  ],
)
def test_damage_is_found_and_the_file_is_named(data, full, name, damage):
  folder, meta = the_set(data)
  packed.verify(folder, meta, full=full)
  damage(folder / name)
  with pytest.raises(DamagedError, match=f'{folder / name}.*run --mode=prepare again'):
    packed.verify(folder, meta, full=full)


def test_a_damaged_description(data):
  folder, meta = the_set(data)
  for wrong in (
    json.dumps(meta)[:-10],
    json.dumps({**meta, 'num_train': 11}),
    json.dumps({**meta, 'label_names': ['dog', 'cat', 'eel']}),
    json.dumps({k: v for k, v in meta.items() if k != 'made'}),
    '{}',
    '[]',
  ):
    (folder / 'meta.json').write_text(wrong)
    with pytest.raises(DamagedError, match=r'meta\.json'):
      sets.find(data, RECIPE.mapping(), '')


def test_full_verification_reads_every_chunk_and_quick_some(tmp_path, monkeypatch):
  monkeypatch.setattr(packed, 'CHUNK_BYTES', 64)
  root = write_tree(tmp_path / 'pets', SMALL)
  folder, meta = prepare(str(root), RECIPE, tmp_path / 'd', max_bad_fraction=0, workers=1)
  count = len(meta['chunk_digests'])
  assert count > 3 * packed.QUICK_CHUNKS
  found = {True: 0, False: 0}
  for number in range(count):
    flip_byte(folder / 'images.npy', 64 * number)
    for full in found:
      try:
        packed.verify(folder, meta, full=full)
      except DamagedError as error:
        assert f'byte {64 * number:,})' in str(error)
        found[full] += 1
    flip_byte(folder / 'images.npy', 64 * number)
  assert found == {True: count, False: packed.QUICK_CHUNKS}


@pytest.mark.parametrize('damage', ['torn', None])
def test_a_set_without_a_description_is_neither_hidden_nor_prepared_again(data, tmp_path, damage):
  folder, meta = the_set(data)
  described = {key: meta[key] for key in meta if key != 'chunk_digests'}
  before = (folder / 'images.npy').stat()
  (folder / 'meta.json').unlink()
  if damage:
    (folder / 'meta.json').write_text(damage)
  with pytest.raises(DamagedError, match=r'meta\.json'):
    prepare(str(tmp_path / 'pets'), RECIPE, data, max_bad_fraction=0, workers=1)
  assert (folder / 'images.npy').stat() == before and not list(data.glob('.preparing*'))
  assert packed.rebuilt_meta(folder, described) == meta
  assert packed.rebuilt_meta(folder, {**described, 'label_names': ['a', 'b', 'c']}) is None
  flip_byte(folder / 'images.npy', -1)
  assert packed.rebuilt_meta(folder, described) is None
