"""Flipped bits, files cut short and missing files: noticed, and never used."""

import hashlib
import shutil

import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.data import adm, latents, packed
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import DamagedError, Stop
from diffusion_jax.evaluation import extract
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.sampling import sample_set
from tests.conftest import tiny_mapping
from tests.data.test_latents import encode
from tests.runtime.test_checkpoint import abstract, assert_same, saved, state
from tests.support.sources import SMALL, write_tree
from tests.support.tiny_flags import TINY

FLIPS = 400  # At least, in a file that has as many bytes.


def flip(path, place=0.5, bit=2):
  """Flips one bit; place: in [0, 1), or a byte."""
  content = bytearray(path.read_bytes())
  content[place if isinstance(place, int) else int(place * len(content))] ^= 1 << bit
  path.write_bytes(content)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
  path.unlink()


def files_of(folder):
  return sorted(p.relative_to(folder) for p in folder.rglob('*') if p.is_file())


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  saved(folder, [1, 2], metrics=lambda step: {'loss': 1.0}).close()
  return folder


def restored_after(damage, path, checkpoints, tmp_path):
  """Returns whether the damage to this file of step 2 was noticed; what comes back is right in any case."""
  folder = tmp_path / 'checkpoints'
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(checkpoints, folder)
  damage(folder / '2' / path)
  manager = Checkpoints(folder)
  found = manager.restore(abstract())
  manager.close()
  assert_same(found.state, state(found.step))
  assert (found.step, list(found.damaged)) in [(1, [2]), (2, [])]
  return bool(found.damaged)


@pytest.mark.parametrize('twelfth', range(12))
def test_a_flipped_bit_of_the_arrays_costs_the_step(checkpoints, tmp_path, twelfth):
  arrays = max(files_of(checkpoints / '2'), key=lambda p: (checkpoints / '2' / p).stat().st_size)
  place = (twelfth + 0.5) / 12
  assert restored_after(lambda path: flip(path, place, twelfth % 8), arrays, checkpoints, tmp_path)


def test_any_damaged_file_costs_the_step_or_nothing(checkpoints, tmp_path):
  """Every file of the newest step: a bit, cut short, and gone. Many files say what others say too."""
  noticed = {
    (str(path), damage): restored_after(damage, path, checkpoints, tmp_path)
    for path in files_of(checkpoints / '2')
    for damage in (flip, cut, remove)
  }
  print(f'{sum(noticed.values())} of {len(noticed)} noticed')
  for name in ('checksums/metadata', 'state/manifest.ocdbt'):
    assert noticed[name, cut] and noticed[name, remove]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  run_mode('train', tiny_mapping(folder, **TINY), {}, folder / 'run')
  return folder


def damage_all(folder):
  for path in (p for p in folder.rglob('*') if p.is_file() and p.parent.name == 'd'):
    cut(path)


def test_where_all_checkpoints_are_damaged_nothing_begins_again(trained, tmp_path, capsys):
  shutil.copytree(trained / 'run', tmp_path / 'run')
  damage_all(tmp_path / 'run' / 'checkpoints')
  before = files_of(tmp_path / 'run')
  for mode in ('train', 'sample'):
    with pytest.raises(
      DamagedError, match=r'no usable checkpoint in \S+/checkpoints:\n +step'
    ) as stop:
      run_mode(mode, tiny_mapping(trained, **TINY), {}, tmp_path / 'run')
    assert stop.value.exit_code == 3
  assert files_of(tmp_path / 'run') == before
  assert 'fresh start' not in capsys.readouterr().out


def outcomes(path, use, expected):
  """Flips bits all over the file, cuts and removes it. Returns: how often `use` noticed, and did not.

  use() raises a Stop, returns None if the file is made again, or what must be `expected`.
  """
  content, noticed, harmless = path.read_bytes(), 0, 0
  places = range(0, len(content), max(1, len(content) // FLIPS))
  damages = [lambda p, i=i: flip(p, i, i % 8) for i in places]
  for damage in [*damages, cut, remove]:
    damage(path)
    try:
      found = use()
    except Stop as stop:
      assert stop.exit_code in (2, 3) and str(path.parent) in str(stop)
      found = None
    noticed, harmless = noticed + (found is None), harmless + (found is not None)
    assert found is None or found == expected, f'{path.name}: silently {found}'
    path.write_bytes(content)
  assert use() == expected
  print(f'{path.name}: {noticed} of {noticed + harmless} noticed, {harmless} harmless')
  return noticed, harmless


@pytest.fixture
def image_set(tmp_path):
  """16 images of 4x4 pixels."""
  root = write_tree(tmp_path / 'pets', SMALL, size=(8, 8))
  recipe = Recipe('pets', 8, 3, 'all', 'sorted', 0, 0)
  return prepare(str(root), recipe, tmp_path / 'data', max_bad_fraction=0, workers=1)


@pytest.mark.parametrize('name', ['images.npy', 'labels.npy', 'meta.json'])
def test_damaged_prepared_data_is_never_used(image_set, name):
  folder, _ = image_set

  def use():
    packed.verify(folder, packed.read_meta(folder), full=False)
    return 'whole'

  assert outcomes(folder / name, use, 'whole')[1] == 0


@pytest.mark.parametrize('name', ['posterior.npy', 'meta.json'])
def test_damaged_latents_are_never_used(image_set, name):
  folder, meta = image_set
  made = encode(folder, meta)

  def use():
    found = latents.find(folder, meta, 'a' * 16, mirrored=True)
    latents.verify(folder, meta, found, full=False)
    return 'whole'

  assert outcomes(latents.folder_of(folder, made) / name, use, 'whole')[1] == 0


def digest(*arrays):
  return hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in arrays)).hexdigest()


def test_a_damaged_description_of_samples_is_never_used(tmp_path):
  sample_set.claim(tmp_path, {'step': 8, 'parameters': 'bb', 'cfg_scale': 1.5})

  def use():
    return sample_set.read_meta(tmp_path)['identity']['cfg_scale']

  noticed, harmless = outcomes(tmp_path / 'meta.json', use, 1.5)
  assert noticed > 10 * harmless  # A space may become another one.


def test_damaged_metrics_of_a_checkpoint_are_not_the_best(tmp_path):
  options = {'keep_newest': 5, 'best_metric': 'loss'}
  saved(tmp_path, [1, 2], metrics=lambda step: {'loss': 2.5 * step}, **options).close()

  def use():
    checkpoints = Checkpoints(tmp_path, read_only=True, **options)
    best = checkpoints.best_step()
    checkpoints.close()
    return None if best == 2 else best

  noticed, harmless = outcomes(tmp_path / '1' / 'metrics' / 'metrics', use, 1)
  assert noticed > 5 * harmless


def test_damaged_sample_parts_are_never_used(tmp_path):
  made = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
  sample_set.save_part(tmp_path, np.arange(3, dtype=np.uint32), made, np.arange(3, dtype=np.int32))

  def use():
    found = sample_set.open_set(tmp_path, 3).read(np.arange(3))
    return digest(found['image'], found['label'])

  noticed, harmless = outcomes(
    tmp_path / 'part-00000000.npz', use, digest(made, np.arange(3, dtype=np.int32))
  )
  assert noticed > harmless


def test_damaged_features_are_computed_again(tmp_path, capsys):
  rng = np.random.default_rng(0)
  kept = FeatureSet(rng.normal(size=(3, 4)).astype(np.float32), None, np.arange(3, dtype=np.int32))
  path = tmp_path / 'features.npz'
  extract._write(path, kept)

  def use():
    found = extract._read(path, 3)
    return found and digest(found.features, found.labels)

  noticed, harmless = outcomes(path, use, digest(kept.features, kept.labels))
  assert noticed > harmless and str(path) in capsys.readouterr().out


def test_damaged_statistics_are_never_used(tmp_path):
  mean, covariance = np.arange(48.0), np.eye(48)  # More than is read, and so verified, at once.
  adm.write_feature_stats(tmp_path / 'reference.npz', mean, covariance)

  def use():
    found = adm.read(tmp_path / 'reference.npz')
    return digest(found.mean, found.covariance)

  noticed, harmless = outcomes(tmp_path / 'reference.npz', use, digest(mean, covariance))
  assert noticed > harmless
