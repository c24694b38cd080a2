"""An objective outside the package that uses every seam trains, resumes, is cut over devices, and samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from tests.conftest import tiny_mapping
from tests.runtime.test_checkpoint import assert_same
from tests.support.samples import load_samples

OBJECTIVE = 'tests.support.every_seam'


def mapping_of(tmp_path, **changes):
  mapping = tiny_mapping(tmp_path, **{'model.dit.depth': 1, **changes})
  mapping['objective'] = {**mapping['objective'], 'name': OBJECTIVE, 'every_seam': {'weight': 0.5}}
  return mapping


def train(tmp_path, workdir, **changes):
  """Returns: the newest state, on the host."""
  mapping = mapping_of(tmp_path, **changes)
  run_mode('train', mapping, changes, workdir, as_json=False)
  checkpoints = open_checkpoints(create(mapping), workdir, read_only=True)
  restored = checkpoints.restore(create(mapping).abstract_state)
  checkpoints.close()
  return jax.device_get(restored.state)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Four steps of it: two of each phase."""
  tmp_path = tmp_path_factory.mktemp('seams')
  return tmp_path, train(tmp_path, tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.unoptimised
def test_every_part_is_trained_in_its_phase_and_every_average_kept(trained):
  tmp_path, state = trained
  initial = jax.jit(create(mapping_of(tmp_path)).init_state)()
  assert set(state.params) == set(state.opt_states) == {'model', 'projector'}
  assert set(state.averages) == {'ema', 'fast'}
  first = train(tmp_path, tmp_path / 'first', **{'train.num_steps': 2})
  assert_same(first.params['projector'], initial.params['projector'])  # Not in the first phase.
  moved = np.abs(state.params['projector']['kernel'] - initial.params['projector']['kernel']).max()
  assert moved > 1e-4 and int(state.skipped) == 0
  differs = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.averages['ema'], state.averages['fast']
  )
  assert max(jax.tree.leaves(differs)) > 1e-6
  assert 'brightness_in' in state.params['model']['condition']


def test_its_metrics_are_logged_and_its_option_kept(trained):
  tmp_path, _ = trained
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'metrics.jsonl').open()]
  assert all(line['alignment'] > 0 for line in lines if 'loss' in line)
  assert all(line['holdout_alignment'] > 0 for line in lines if 'holdout_loss' in line)
  stored = json.loads((tmp_path / 'run' / 'config.json').read_text())['objective']
  assert stored['name'] == OBJECTIVE and stored['every_seam'] == {'weight': 0.5}


@pytest.mark.slow
@pytest.mark.unoptimised
def test_it_resumes_bit_for_bit(trained):
  tmp_path, _ = trained
  train(tmp_path, tmp_path / 'resumed', **{'train.num_steps': 2, 'optimizer.decay': 'constant'})
  whole = train(tmp_path, tmp_path / 'whole', **{'optimizer.decay': 'constant'})
  assert_same(train(tmp_path, tmp_path / 'resumed', **{'optimizer.decay': 'constant'}), whole)


@pytest.mark.parametrize('average', ['ema', 'fast', ''])
def test_it_samples_from_any_average(trained, average):
  tmp_path, state = trained
  flags = {'sample.average': average, 'sample.name': average or 'raw'}
  run_mode('sample', mapping_of(tmp_path, **flags), flags, tmp_path / 'run', as_json=False)
  folder = tmp_path / 'run' / 'samples' / (average or 'raw')
  made, labels = load_samples(folder, 20)
  assert made.shape == (20, 8, 8, 1)
  experiment = create(mapping_of(tmp_path, **flags))
  parts = {**state.params, **(state.averages[average] if average else {})}
  network = experiment.objective.network(parts)
  expected, _ = jax.jit(lambda n, y: experiment.generator()(network, n, y))(
    np.arange(20, dtype=np.uint32), labels
  )
  levels = np.clip(np.floor(127.5 * np.asarray(expected) + 128), 0, 255)
  assert np.abs(made.astype(float) - levels).max() <= 1


def test_an_average_that_it_has_not_is_refused(trained):
  tmp_path, _ = trained
  with pytest.raises(
    Exception, match=r"config\.sample\.average: got 'slow', allowed 'ema', 'fast'"
  ):
    create(mapping_of(tmp_path, **{'sample.average': 'slow'}))


@pytest.mark.slow
def test_eight_devices_train_what_one_does(trained):
  """Two steps, all parts and averages, of a state that is cut over four of them."""
  tmp_path, _ = trained
  root = Path(__file__).parents[2]
  for devices in (1, 8):
    flags = {'JAX_PLATFORMS': 'cpu'}
    flags['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
    command = [sys.executable, '-m', 'tests.support.seams_run', str(tmp_path), str(devices)]
    subprocess.run(command, cwd=root, env={**os.environ, **flags}, check=True)
  one, eight = (dict(np.load(tmp_path / f'seams-{devices}.npz')) for devices in (1, 8))
  assert one.keys() == eight.keys()
  assert int(one['cut']) == 0
  assert int(eight['cut']) == 9  # 3 kernels of the parameters and 2 averages.
  for name in one.keys() - {'cut'}:
    np.testing.assert_allclose(eight[name], one[name], rtol=1e-4, atol=1e-5, err_msg=name)
