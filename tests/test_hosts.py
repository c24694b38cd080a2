"""Two processes with two devices each do what one process with one device does, each image once."""

import csv
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import create
from diffusion_jax.sampling import sample_set
from tests.conftest import tiny_mapping
from tests.stages import test_latent
from tests.support.samples import load_samples

ROOT = Path(__file__).parents[1]
TENSOR = {'mesh.data': 1, 'mesh.tensor': -1}


def processes(module, folder, num_processes, last):
  """python -m tests.support.MODULE FOLDER NUM PROCESS PORT LAST for each; their exit codes and outputs."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(num_processes)}
  environment.pop('XLA_FLAGS', None)
  command = [sys.executable, '-m', f'tests.support.{module}', str(folder), str(num_processes)]
  running = [
    subprocess.Popen(
      [*command, str(process), port, last],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for process in range(num_processes)
  ]
  try:
    outputs = [process.communicate(timeout=200)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], outputs


def run(folder, num_processes, axes):
  """What process 0 of tests/support/host_run.py wrote."""
  codes, outputs = processes('host_run', folder, num_processes, axes)
  assert codes == [0] * num_processes, '\n'.join(outputs)
  with np.load(folder / f'hosts-{num_processes}-{axes}.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hosts')
  preparation.ensure(create(tiny_mapping(folder)), folder / 'prepared')
  return folder


@pytest.fixture(scope='module')
def one(folder):
  return run(folder, 1, 'data')


@pytest.mark.unoptimised
@pytest.mark.parametrize(
  'axes',
  [pytest.param('data', marks=pytest.mark.slow), pytest.param('tensor', marks=pytest.mark.full)],
)
def test_two_hosts_with_two_devices_each(folder, one, axes):
  """Cut along data, a host reads half of each batch; with all devices on one tensor, all of it."""
  two = run(folder, 2, axes)
  assert len(one['rows']) == 16 and len(two['rows']) == (8 if axes == 'data' else 16)
  for number in range(3):
    np.testing.assert_array_equal(two[f'image{number}'], one[f'image{number}'])
    np.testing.assert_array_equal(two[f'label{number}'], one[f'label{number}'])
  assert not np.array_equal(one['image0'], one['image1'])
  for name in ('loss0', 'loss1', 'evaluation_loss'):  # Flips and noise are keyed by position.
    np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
  assert one['evaluated'] == two['evaluated'] == 1003
  np.testing.assert_array_equal(one['times'], 1)
  np.testing.assert_array_equal(two['times'], 1)
  assert one['preview'].std() > 10
  np.testing.assert_allclose(two['preview'].astype(int), one['preview'], atol=1)  # Of 255.


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A trained work directory, and a set that one process made."""
  folder = tmp_path_factory.mktemp('sampling')
  run_mode('train', tiny_mapping(folder), {}, folder / 'run', as_json=False)
  sample_alone(folder, SAMPLE)
  return folder


SAMPLE = {'sample.num_samples': 43, 'sample.batch_size': 16, 'sample.grid_columns': 1}


def sample_alone(folder, flags):
  flags = {**flags, 'sample.name': 'one'}
  run_mode('sample', tiny_mapping(folder, **flags), flags, folder / 'run', as_json=False)


def sample_together(folder, flags, name):
  """By two processes; their exit codes, outputs, and the folder of the set."""
  content = json.dumps({**flags, 'sample.name': name})
  codes, outputs = processes('hosts_sample', folder, 2, content)
  return codes, outputs, folder / 'run' / 'samples' / name


def require_same(found, expected, num_samples):
  """Two sets, to a level in few pixels, and their pictures."""
  images, labels = load_samples(found, num_samples)
  expected_images, expected_labels = load_samples(expected, num_samples)
  np.testing.assert_array_equal(labels, expected_labels)
  differences = np.abs(images.astype(int) - expected_images)
  assert differences.max() <= 1 and np.mean(differences > 0) < 1e-3
  with np.load(found / 'frames.npz') as file, np.load(expected / 'frames.npz') as other:
    assert np.abs(file['frames'].astype(int) - other['frames']).max() <= 1
    made = images[file['index']].astype(int)
    assert np.abs(file['frames'][-1] - made).max() <= 1
    np.testing.assert_array_equal(file['index'], other['index'])
  size = Image.open(expected / 'grid.png').size
  assert Image.open(found / 'grid.png').size == size
  identity = sample_set.read_meta(expected)['identity']
  assert sample_set.read_meta(found)['identity'] == identity


def owned(folder):
  """First sample -> numbers, of every part."""
  found = {}
  for path in sorted(folder.glob('part-*')):
    with np.load(path) as file:
      found[path.name] = file['index'].tolist()
  return found


@pytest.mark.slow
@pytest.mark.unoptimised
def test_two_hosts_make_the_set_of_one(trained):
  """Half of each batch each; then the parts of one host are lost, and made again."""
  flags = {**SAMPLE, 'sample.export': ['npz', 'png']}
  codes, outputs, folder = sample_together(trained, flags, 'two')
  assert codes == [0, 0], '\n'.join(outputs)
  require_same(folder, trained / 'run' / 'samples' / 'one', 43)
  parts = owned(folder)
  assert sorted(itertools.chain(*parts.values())) == list(range(43))
  assert sorted(map(len, parts.values())) == [3, 8, 8, 8, 8, 8]  # 43 is 16 + 16 + 11.
  assert 'sampling' in outputs[0] and '43 of 43 samples to make' in outputs[0]
  assert 'sampling' not in outputs[1] and 'done' not in outputs[1]
  assert 'process 0 wrote 24' in outputs[0] and 'process 1 wrote 19' in outputs[1]
  made = load_samples(folder, 43)[0]
  with np.load(folder / 'samples.npz') as file:
    np.testing.assert_array_equal(file['arr_0'], made.repeat(3, axis=-1))
  assert len(list(folder.glob('png/*/*.png'))) == 43

  lost = [name for name, index in parts.items() if index[0] % 16 == 8]
  for name in [*lost, 'frames.npz']:
    (folder / name).unlink()
  codes, outputs, _ = sample_together(trained, flags, 'two')
  assert codes == [0, 0] and '19 of 43 samples to make' in outputs[0], '\n'.join(outputs)
  assert owned(folder) == parts
  np.testing.assert_array_equal(load_samples(folder, 43)[0], made)
  require_same(folder, trained / 'run' / 'samples' / 'one', 43)


def test_two_hosts_measure_what_one_does(trained):
  """Each computes the features of half of each batch; nothing that was kept is read."""
  flags = {**SAMPLE, 'eval.features.name': 'pixels', 'eval.metrics': ['fid', 'precision_recall']}
  flags |= {'eval.neighbours': 2, 'eval.batch_size': 4, 'sample.name': 'one'}
  path, found = trained / 'run' / 'eval' / 'one.json', []
  for count in (1, 2):
    codes, outputs = processes(
      'hosts_sample', trained, count, json.dumps({**flags, 'mode': 'evaluate'})
    )
    assert codes == [0] * count, '\n'.join(outputs)
    found.append(json.loads(path.read_text()))
    path.unlink()
    shutil.rmtree(trained / 'run' / 'samples' / 'one' / 'features')
    shutil.rmtree(trained / 'data' / 'features')
  one, two = found
  assert set(one['metrics']) == {'frechet_distance', 'precision', 'recall'}
  for part in ('metrics', 'neighbours'):
    assert two[part] == pytest.approx(one[part], rel=1e-6)
  assert two['protocol'] == one['protocol'] and 'frechet distance' in outputs[0]
  assert 'frechet' not in outputs[1] and 'evaluating' not in outputs[1]


@pytest.mark.slow
@pytest.mark.unoptimised
def test_two_hosts_sweep_what_one_does(trained):
  """The second cell is made by two hosts alone, the first one was there."""
  flags = {**SAMPLE, 'eval.features.name': 'pixels', 'eval.metrics': ['fid'], 'mode': 'sweep'}
  flags |= {'eval.neighbours': 0, 'sample.checkpoint': 'latest'}
  folder, found = trained / 'run' / 'sweeps' / 'num_steps', []
  for count in (1, 2):
    wanted = json.dumps({**flags, 'swept': ['sample.num_steps=2,4']})
    codes, outputs = processes('hosts_sample', trained, count, wanted)
    assert codes == [0] * count, '\n'.join(outputs)
    with open(folder / 'cells.csv', newline='') as file:
      found.append([float(row['frechet_distance']) for row in csv.DictReader(file)])
    for steps in (2, 4):
      part = owned(trained / 'run' / 'samples' / f'ddim{steps}-cfg1')
      assert list(map(len, part.values())) == [10]
    shutil.rmtree(trained / 'run' / 'samples' / 'ddim4-cfg1')
    (trained / 'run' / 'eval' / 'ddim4-cfg1.json').unlink()
  assert 'cell 1 of 2' not in outputs[0] and 'cell 2 of 2' in outputs[0]
  assert 'cell' not in outputs[1] and 'written' not in outputs[1]
  assert len(found[0]) == 2 and found[1] == pytest.approx(found[0], rel=1e-3)


def test_what_the_first_host_refuses_stops_both(trained):
  """Before they wait for each other for ever."""
  shutil.copytree(trained / 'run' / 'samples' / 'one', trained / 'run' / 'samples' / 'other')
  codes, outputs, _ = sample_together(trained, {**SAMPLE, 'sample.num_steps': 2}, 'other')
  assert codes == [2, 2], '\n'.join(outputs)
  assert all('num_steps: 3, asked 2' in output for output in outputs)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_hosts_that_share_a_tensor_write_every_sample_once(trained):
  """All four devices hold every row; the kernels are cut over both hosts, in the checkpoint too."""
  rules = [
    ['blocks/qkv/kernel', ['', '', '', '', 'tensor']],
    ['blocks/mlp_in/kernel', ['', '', 'tensor']],
  ]
  flags = {**SAMPLE, **TENSOR, 'mesh.rules': rules}
  codes, outputs, folder = sample_together(trained, flags, 'tensor')
  assert codes == [0, 0], '\n'.join(outputs)
  require_same(folder, trained / 'run' / 'samples' / 'one', 43)
  assert 'process 0 wrote 43' in outputs[0] and 'process 1 wrote 0' in outputs[1]


@pytest.mark.slow
def test_two_hosts_decode_latents(tmp_path):
  """Images and frames through the autoencoder's copy on every device."""
  test_latent.write_tree(tmp_path / 'pets', test_latent.SMALL)
  test_latent.write_autoencoder(tmp_path)
  test_latent.run('train', tmp_path / 'run', tmp_path)
  flags = {**test_latent.flags(tmp_path), **SAMPLE}
  sample_alone(tmp_path, flags)
  codes, outputs, folder = sample_together(tmp_path, flags, 'two')
  assert codes == [0, 0], '\n'.join(outputs)
  require_same(folder, tmp_path / 'run' / 'samples' / 'one', 43)
