"""main.py on several processes prepares images and latents as one does, and looks for the same data on all."""

import json
import re
import shutil
import signal
import time

import pytest

from diffusion_jax.data import sets
from tests.data.test_shares import files_of
from tests.stages.test_latent import LATENT, write_autoencoder
from tests.support.clusters import finish, start, wait_for
from tests.support.sources import write_tree

COUNTS = {
  'train/cat': 60,
  'train/dog': 50,
  'train/eel': 40,
  'val/cat': 2,
  'val/dog': 2,
  'val/eel': 2,
}
PETS = {
  'data.name': 'pets',
  'data.image_size': 16,
  'data.channels': 3,
  'data.holdout': 0,
  'data.workers': 1,
  'data.max_bad_fraction': 0.1,
  'num_classes': 3,
}
TINY = {
  'model.dit.depth': 1,
  'model.dit.hidden_size': 32,
  'model.dit.num_heads': 2,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 2,
  'train.batch_size': 8,
  'train.log_every_steps': 1,
  'train.holdout_every_steps': 2,
  'train.preview_every_steps': 2,
  'checkpoint.every_steps': 2,
  'sample.num_samples': 4,
  'sample.num_steps': 2,
}
LONGEST = 30  # Seconds until all processes have ended.


def command(folder, mode='prepare', name='run', **changes):
  """Arguments of main.py; data and work directory lie in `folder`."""
  flags = {**PETS, 'data.source': str(folder.parent / 'pets'), 'data.dir': str(folder / 'data')}
  flags = {**flags, **changes}
  own = ['--config=configs/quickstart.py', f'--mode={mode}', f'--workdir={folder / name}']
  return [*own, *(f'--config.{name}={value}' for name, value in flags.items())]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """The source `pets`, and an autoencoder."""
  root = tmp_path_factory.mktemp('clusters')
  write_tree(root / 'pets', COUNTS)
  (root / 'pets' / 'train' / 'dog' / '0003.jpg').write_bytes(b'')
  write_autoencoder(root)
  return root


@pytest.fixture(scope='module')
def alone(root):
  """The set that one process makes."""
  codes, _, errors = finish(start(*command(root / 'alone'), num_processes=1))
  assert codes == [0], errors
  ((folder, _),) = sets.prepared(root / 'alone' / 'data').items()
  return folder


@pytest.fixture
def folder(root, request):
  return root / re.sub(r'\W', '_', request.node.name)


SLOW = """
import sys, time
from diffusion_jax.cli import main
from diffusion_jax.data import latents, packing
from diffusion_jax.runtime import lease
packing.TASK_IMAGES, packing.JOURNAL_SECONDS, lease.RENEWED_EVERY, latents.NOTE_SECONDS = 2, 0.1, 0.3, 0.1
decode, rows = packing.to_pixels, latents._images
packing.to_pixels = lambda *a: (time.sleep(0.2), decode(*a))[1]
latents._images = lambda *a: (time.sleep(0.5), rows(*a))[1]
sys.argv[0] = 'main.py'
sys.exit(main())
"""
SLOWLY = ('-c', SLOW)  # Long enough to be interrupted.


def test_two_processes_prepare_what_one_does(folder, alone):
  codes, outputs, errors = finish(start(*command(folder)))
  assert codes == [0, 0], errors
  ((found, _),) = sets.prepared(folder / 'data').items()
  assert files_of(found) == files_of(alone) and list((folder / 'data').iterdir()) == [found]
  log = (folder / 'run' / 'logs' / 'host-1.log').read_text()
  assert 'decoding 78 of 156' in outputs[0] and 'decoding 78 of 156' in log
  assert 'preparing' not in errors[1]
  assert json.loads((folder / 'run' / 'data.json').read_text())['bad_files'][0]['row'] == 63


def journaled(folder, pattern='journal*'):
  """How many rows each process has noted."""
  return [path.read_text().count('"') // 2 for path in folder.glob(f'data/.preparing-*/{pattern}')]


def stop(running, numbers, sign=signal.SIGTERM):
  """Sends the signal to these. Returns: exit codes and errors, after asserting that all end in time."""
  began = time.monotonic()
  for number in numbers:
    running[number].send_signal(sign)
  codes, _, errors = finish(running, timeout=100)
  assert time.monotonic() - began < LONGEST, errors
  return codes, errors


@pytest.mark.parametrize(
  'stopped', [(0,), *(pytest.param(numbers, marks=pytest.mark.slow) for numbers in ((1,), (0, 1)))]
)
def test_a_signal_ends_all_and_the_same_command_goes_on(folder, alone, stopped):
  running = start(*command(folder), program=SLOWLY)
  wait_for(lambda: sum(count > 6 for count in journaled(folder)) == 2, running)
  if stopped == (0, 1):
    codes, outputs, errors = finish(
      start(*command(folder, name='other'), num_processes=1, program=SLOWLY)
    )
    assert codes == [2] and 'another command does that already' in errors[0]
    assert f'process {running[0].pid} of host' in errors[0]
  codes, errors = stop(running, stopped)
  assert codes == [75, 75] and 'the same command goes on' in errors[0]
  assert sets.prepared(folder / 'data') == {}
  done = sum(journaled(folder))
  assert len(journaled(folder)) == 2 and 14 <= done < 150
  count = {(0,): 1, (1,): 2, (0, 1): 3}[stopped]
  codes, outputs, errors = finish(start(*command(folder), num_processes=count))
  assert codes == [0] * count, errors
  assert f'going on: {done} images' in outputs[0]
  ((found, _),) = sets.prepared(folder / 'data').items()
  assert files_of(found) == files_of(alone) and list((folder / 'data').iterdir()) == [found]


def test_a_signal_ends_a_single_process_which_goes_on(folder, alone):
  running = start(*command(folder), num_processes=1, program=SLOWLY)
  wait_for(lambda: sum(journaled(folder)) > 6, running)
  codes, errors = stop(running, (0,))
  assert codes == [75] and 'the same command goes on' in errors[0]
  assert not list((folder / 'data').glob('*.lease'))
  done = sum(journaled(folder))
  codes, outputs, errors = finish(start(*command(folder), num_processes=1))
  assert codes == [0] and f'going on: {done} images' in outputs[0], errors
  ((found, _),) = sets.prepared(folder / 'data').items()
  assert files_of(found) == files_of(alone)


@pytest.mark.slow
def test_an_error_of_one_process_ends_both(folder, root):
  """All images of process 1 are empty, which it sees long before process 0 has done its share."""
  source = folder.parent / f'{folder.name}-pets'
  shutil.copytree(root / 'pets', source)
  for path in [*source.glob('train/eel/*'), *source.glob('val/*/*')]:
    path.write_bytes(b'')
  began = time.monotonic()
  changes = {'data.source': str(source), 'data.max_bad_fraction': 0.02}
  codes, _, errors = finish(start(*command(folder, **changes), program=SLOWLY))
  assert codes == [2, 2] and time.monotonic() - began < LONGEST
  assert re.search(r'process 1: .*bad files among 156 images', errors[0]), errors
  assert 'bad files' not in errors[1]


def train(folder, places, name):
  """Trains with a data folder of each process's own."""
  flags = {**TINY, 'data.source': ''}
  arguments = [a for a in command(folder, 'train', name, **flags) if 'data.dir' not in a]
  return finish(start(*arguments, each=[[f'--config.data.dir={place}'] for place in places]))


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['another', 'none'])
def test_different_data_on_two_hosts_are_refused_by_both(alone, folder, kind):
  if kind == 'another':
    write_tree(folder / 'others', {**COUNTS, 'val/eel': 3})
    other = {'data.source': str(folder / 'others')}
    codes, _, errors = finish(start(*command(folder, **other), num_processes=1))
    assert codes == [0], errors
  codes, _, errors = train(folder, [alone.parent, folder / 'data'], 'trained')
  assert codes == [2, 2], errors
  assert re.search(rf'process 0: {alone.name.rsplit("-", 1)[-1]} in {alone}', errors[0]), errors
  found = r'none \(' if kind == 'none' else rf'[0-9a-f]{{16}} in {folder}'
  assert re.search(f'process 1: {found}', errors[0]), errors
  assert 'copy the folder' in errors[0] and 'process 0' not in errors[1]


def test_a_config_that_fails_on_one_process_ends_both(alone, folder):
  """Only process 0 has the data that say how many channels there are."""
  flags = {**TINY, 'data.source': '', 'data.channels': 0}
  each = [[f'--config.data.dir={place}'] for place in (alone.parent, folder / 'data')]
  arguments = [a for a in command(folder, 'train', **flags) if 'data.dir' not in a]
  codes, _, errors = finish(start(*arguments, each=each), timeout=60)
  assert codes == [2, 2], errors
  assert re.search(rf'process 1: no prepared data .*{folder}', errors[0]), errors


def test_a_file_that_one_host_lacks_ends_both(root, folder):
  """Process 1 alone finds no autoencoder, while process 0 prepares."""
  there = str(root / 'vae.safetensors')
  arguments = command(folder, **{**LATENT, **TINY, **PETS})
  each = [[f'--config.vae.checkpoint={path}'] for path in (there, f'{there}-gone')]
  began = time.monotonic()
  codes, _, errors = finish(start(*arguments, each=each), timeout=60)
  assert codes == [2, 2] and time.monotonic() - began < LONGEST, errors
  assert all('vae.safetensors-gone: no such file' in text for text in errors), errors


@pytest.mark.slow
@pytest.mark.unoptimised
def test_two_hosts_train_on_copies_of_one_set(alone, folder):
  shutil.copytree(alone, folder / 'data' / alone.name)
  codes, outputs, errors = train(folder, [alone.parent, folder / 'data'], 'trained')
  assert codes == [0, 0], errors
  assert 'done: 2 steps' in outputs[0]
  each = [[f'--config.data.dir={place}'] for place in (alone.parent, folder / 'nowhere')]
  evaluate = [f'--workdir={folder / "trained"}', '--mode=evaluate']
  codes, _, errors = finish(start(*evaluate, each=each))
  assert codes == [2, 2] and 'process 1: none (' in errors[0], errors


@pytest.mark.slow
@pytest.mark.unoptimised
def test_training_on_two_processes_encodes_what_one_process_does(root, folder):
  """With one device each the batches are those of one; a killed encoding goes on, with one process or two."""
  flags = {**LATENT, **TINY, **PETS, 'vae.checkpoint': str(root / 'vae.safetensors')}

  def latents_of(name):
    ((made, _),) = sets.prepared(root / name / 'data').items()
    (own,) = made.glob('latents-*')
    assert not list(made.glob('.encoding-*'))
    return {path.name: path.read_bytes() for path in own.iterdir()}

  one, two = root / f'{folder.name}-1', root / f'{folder.name}-2'
  codes, _, errors = finish(start(*command(one, **flags), num_processes=1, devices=1))
  assert codes == [0], errors
  running = start(*command(two, 'train', **flags), devices=1, program=SLOWLY)
  wait_for(lambda: len(list(two.glob('data/*/.encoding-*/done*'))) == 2, running, timeout=100)
  codes, errors = stop(running, (1,))
  assert codes == [75, 75]
  codes, outputs, errors = finish(start(*command(two, 'train', **flags), devices=1))
  assert codes == [0, 0], errors
  assert 'latents are there from an interrupted run' in outputs[0] and 'done: 2 steps' in outputs[0]
  assert latents_of(two.name) == latents_of(one.name)
