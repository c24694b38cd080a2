"""A disk that is full, or read-only: one message, nothing lost, and the same command goes on with room."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.runtime import files
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.sampling import sample_set
from tests.conftest import tiny_mapping
from tests.support.disks import Injected, Tmpfs
from tests.support.killing import leftovers, steps
from tests.support.samples import load_samples
from tests.support.tiny_flags import TINY


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A folder with data/ and run/, trained to step 4."""
  folder = tmp_path_factory.mktemp('trained')
  run('train', folder)
  return folder


pytestmark = pytest.mark.unoptimised


@pytest.fixture(params=[pytest.param(Tmpfs, marks=pytest.mark.full), Injected])
def disk(request, tmp_path):
  """A disk with a copy of the trained folder."""
  try:
    made = request.param(tmp_path / 'disk')
  except (OSError, FileNotFoundError):
    pytest.skip('no tmpfs can be mounted here')
  yield made
  made.make_room()
  made.close()


def run(mode, folder, **changes):
  run_mode(mode, tiny_mapping(folder, **{**TINY, **changes}), changes, folder / 'run')


def full_before(monkeypatch, disk, owner, name, calls=1, left=0):
  """Fills the disk when owner.name is called for the calls-th time."""
  before, count = getattr(owner, name), 0

  def call(*arguments, **named):
    nonlocal count
    count += 1
    if count == calls:
      disk.fill(left)
    return before(*arguments, **named)

  monkeypatch.setattr(owner, name, call)


# A save that fails in the background leaves nothing behind that talks about it.
@pytest.mark.filterwarnings('error::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('place', ['write', 'save'])
def test_training_ends_with_one_message_and_goes_on(trained, disk, monkeypatch, place):
  shutil.copytree(trained, disk.path, dirs_exist_ok=True)
  owner = {'save': Checkpoints, 'write': ocp.CheckpointManager}[place]
  full_before(monkeypatch, disk, owner, 'save', left=4096)
  with pytest.raises(InputError, match='checkpoints: a checkpoint') as stop:
    run('train', disk.path, **{'train.num_steps': 8})
  assert '\n' not in str(stop.value)
  monkeypatch.undo()
  assert steps(disk.path / 'run') == [2, 4]
  disk.make_room()
  run('train', disk.path, **{'train.num_steps': 8})
  assert steps(disk.path / 'run') == [6, 8] and leftovers(disk.path / 'run') == []


def test_sampling_keeps_its_parts_and_goes_on(trained, disk, monkeypatch):
  shutil.copytree(trained, disk.path, dirs_exist_ok=True)
  flags = {'sample.batch_size': 10}
  full_before(monkeypatch, disk, sample_set, 'save_part', calls=2)
  with pytest.raises(InputError, match=r'samples/ddim2-cfg1/\S+: No space left') as stop:
    run('sample', disk.path, **flags)
  assert '\n' not in str(stop.value)
  monkeypatch.undo()
  folder = disk.path / 'run' / 'samples' / 'ddim2-cfg1'
  (part,) = folder.glob('part-*.npz')
  before = part.stat().st_mtime_ns
  disk.make_room()
  run('sample', disk.path, **flags)
  assert part.stat().st_mtime_ns == before and leftovers(folder) == []
  assert load_samples(folder, 20)[0].shape == (20, 8, 8, 1)


def test_preparing_says_what_it_needs_and_goes_on(disk, monkeypatch):
  full_before(monkeypatch, disk, files, 'reserved_array')
  with pytest.raises(InputError, match=r'config\.data\.dir: \S+/data/\S+: No space left') as stop:
    run('prepare', disk.path)
  assert '\n' not in str(stop.value)
  disk.make_room()
  run('prepare', disk.path)
  (folder,) = (disk.path / 'data').glob('digits-*')
  assert np.load(folder / 'images.npy').shape == (1797, 8, 8, 1)


def test_evaluating_names_the_file_and_goes_on(trained, disk, monkeypatch):
  shutil.copytree(trained, disk.path, dirs_exist_ok=True)
  run('sample', disk.path)
  full_before(monkeypatch, disk, files, 'write_npz')  # Of features.
  with pytest.raises(InputError, match=r'\.npz: No space left') as stop:
    run('evaluate', disk.path)
  assert '\n' not in str(stop.value)
  disk.make_room()
  run('evaluate', disk.path)
  (path,) = (disk.path / 'run' / 'eval').glob('*.json')
  assert json.loads(path.read_text())['metrics']['frechet_distance'] > 0


def test_a_read_only_work_directory_is_one_message(trained, disk):
  shutil.copytree(trained, disk.path, dirs_exist_ok=True)
  before = sorted(disk.path.rglob('*'))
  disk.protect()
  for mode in ('train', 'sample', 'evaluate'):
    with pytest.raises(InputError, match=rf'{disk.path}/run.*Read-only file system') as stop:
      run(mode, disk.path, **{'train.num_steps': 8} if mode == 'train' else {})
    assert '\n' not in str(stop.value)
  assert sorted(disk.path.rglob('*')) == before
  disk.protect(False)
  run('train', disk.path, **{'train.num_steps': 6})
  assert steps(disk.path / 'run') == [4, 6]
