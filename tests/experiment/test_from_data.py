"""Fields left to the data are those of the data, whatever tells them first."""

import shutil

import pytest

from configs import base, data, folder
from diffusion_jax.data import packed, sets
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import from_data, stored
from diffusion_jax.experiment.checks import create
from tests.support.sources import write_tree


def of_folder(root, tmp_path, **changes):
  config = folder.get_config(str(root))
  config.update_from_flattened_dict({'data.dir': str(tmp_path / 'data'), **changes})
  return config.to_dict()


def found(mapping):
  data, dit = mapping['data'], mapping['model']['dit']
  names = ('name', 'image_size', 'channels')
  return (mapping['num_classes'], *(data[name] for name in names), dit['patch_size'])


@pytest.fixture
def root(tmp_path):
  return write_tree(tmp_path / 'My pets (new)', {'cat': 20, 'dog': 9, 'eel': 2}, size=(90, 70))


def made(mapping):
  recipe = create(mapping).datasets.recipe
  folder = create(mapping).datasets.folder
  return prepare(mapping['data']['source'], recipe, folder, max_bad_fraction=0, workers=1)


def test_a_source_tells_them_and_then_the_prepared_set(root, tmp_path):
  mapping = of_folder(root, tmp_path)
  expected = (3, 'My_pets_new', 64, 3, 4)
  assert found(from_data.resolved(mapping)) == expected
  _, meta = made(mapping)
  assert (meta['num_train'], meta['num_holdout']) == (27, 4)  # 2, 1 and 1 of 20, 9 and 2.
  assert [min(counts) for counts in meta['images_per_class'].values()] == [1, 1]
  shutil.rmtree(root)
  assert found(from_data.resolved(mapping)) == expected
  assert found(create(mapping).mapping) == expected


def test_what_is_given_stays(root, tmp_path):
  given = {'num_classes': 0, 'data.image_size': 48, 'data.name': 'mine', 'data.channels': 1}
  expected = (0, 'mine', 48, 1, 3)
  assert found(from_data.resolved(of_folder(root, tmp_path, **given))) == expected
  made(of_folder(root, tmp_path, **{'data.image_size': 32}))
  assert from_data.resolved(of_folder(root, tmp_path))['data']['image_size'] == 32
  assert found(from_data.resolved(of_folder(root, tmp_path, **given))) == expected


def test_a_set_of_the_same_name_from_elsewhere_does_not_count(root, tmp_path):
  made(of_folder(root, tmp_path, **{'data.image_size': 32}))
  other = write_tree(tmp_path / 'other' / root.name, {'a': 4, 'b': 4}, size=(300, 200))
  assert found(from_data.resolved(of_folder(other, tmp_path))) == (2, 'My_pets_new', 128, 3, 8)


def test_one_class_is_no_class(tmp_path):
  root = write_tree(tmp_path / 'flat', {'.': 12}, size=(40, 33))
  mapping = of_folder(root, tmp_path)
  assert found(from_data.resolved(mapping))[:3] == (0, 'flat', 32)
  _, meta = made(mapping)
  assert found(from_data.resolved(mapping))[:3] == (0, 'flat', 32)
  assert (meta['num_train'], meta['num_holdout'], len(meta['label_names'])) == (11, 1, 1)


def test_a_trained_run_keeps_its_own(tmp_path):
  (tmp_path / 'run' / 'checkpoints' / '4').mkdir(parents=True)
  mapping = of_folder(tmp_path / 'gone', tmp_path)
  trained = from_data.with_values(
    mapping, {'num_classes': 7, 'data.name': 'x', 'data.image_size': 12, 'data.channels': 1}
  )
  stored.save(tmp_path / 'run', from_data.with_values(trained, {'model.dit.patch_size': 3}))
  assert found(from_data.as_stored(mapping, tmp_path / 'run')) == (7, 'x', 12, 1, 3)
  assert from_data.as_stored(mapping, tmp_path / 'new') == mapping


def test_nothing_tells_them(tmp_path):
  mapping = data.get_config().to_dict()
  mapping['data'].update(dir=str(tmp_path), class_list='all')
  with pytest.raises(InputError, match='no prepared data'):
    create(mapping)
  with pytest.raises(InputError, match=r'config\.data\.source: .*gone'):
    create(of_folder(tmp_path / 'gone', tmp_path))


def test_imagenet100_is_called_so_and_nothing_else_is(root, tmp_path):
  mapping = data.get_config().to_dict()
  mapping['data']['dir'] = str(tmp_path)
  assert found(from_data.resolved(mapping))[:4] == (100, 'imagenet100', 128, 3)
  mapping['data'].update(class_list='all', source=str(root))
  assert found(from_data.resolved(mapping))[:4] == (3, 'My_pets_new', 128, 3)


@pytest.mark.parametrize(
  'source, name',
  [
    ('', ''),
    ('/a/photos/', 'photos'),
    ('/a/photos.tar.gz', 'photos'),
    ('photos.v2.ZIP', 'photos_v2'),
    ('/a/b/..', 'a'),
    ('/a/Ärger/猫', 'images'),
    ('cifar10:3.0.2', 'cifar10_3_0_2'),
  ],
)
def test_a_set_is_named_after_its_source(source, name):
  assert from_data.name_of(source) == name


def test_a_patch_size_is_the_smallest_that_gives_16_a_side():
  mapping = base.get_config().to_dict()
  for side, patch in ((8, 1), (28, 2), (32, 2), (48, 3), (64, 4), (128, 8), (17, 17)):
    mapping['data']['image_size'] = side
    assert from_data.patch_size(mapping) == patch
  latent = {**mapping, 'space': 'latent', 'data': {**mapping['data'], 'image_size': 256}}
  assert from_data.patch_size(latent) == 4  # 64 x 64 latents of an f4 autoencoder.


def test_another_number_of_classes_is_refused_before_anything_is_decoded(root, tmp_path):
  recipe = Recipe('x', 16, 3, 'all', 'sorted', 0, 0)
  options = {'max_bad_fraction': 0, 'workers': 1}
  with pytest.raises(InputError, match=r'config\.num_classes: got 100, but .* has 3'):
    prepare(str(root), recipe, tmp_path / 'data', **options, num_classes=100)
  assert not (tmp_path / 'data').exists()
  path, _ = prepare(str(root), recipe, tmp_path / 'data', **options, num_classes=3)
  assert sets.prepared(tmp_path / 'data') == {path: packed.read_meta(path)}
