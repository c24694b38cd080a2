"""One device and eight give the same training step, the same samples and read each other's checkpoints."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """(devices, rules) -> what tests/support/device_run.py wrote."""
  folder, found = tmp_path_factory.mktemp('devices'), {}
  for devices, rules in ((1, 'replicated'), (8, 'replicated'), (8, 'sharded')):
    flags = os.environ.get('XLA_FLAGS', '')
    flags += f' --xla_force_host_platform_device_count={devices}'
    subprocess.run(
      [sys.executable, '-m', 'tests.support.device_run', folder, str(devices), rules],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
      check=True,
    )
    with np.load(folder / f'devices-{devices}-{rules}.npz') as file:
      found[devices, rules] = dict(file)
  return found


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('rules', ['replicated', 'sharded'])
def test_sharded_training_equals_single_device(results, rules):
  one, eight = results[1, 'replicated'], results[8, rules]
  assert eight['shards'] == (4 if rules == 'sharded' else 1)
  names = [name for name in one if name.startswith('state:params')]
  assert names and any(np.abs(one[name]).max() > 0 for name in names)
  np.testing.assert_allclose(eight['loss'], one['loss'], rtol=1e-5)
  for name in names:
    np.testing.assert_allclose(eight[name], one[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('rules', ['replicated', 'sharded'])
def test_a_checkpoint_of_one_device_is_restored_exactly_on_eight(results, rules):
  one, eight = results[1, 'replicated'], results[8, rules]
  for name in one:
    if name.startswith('state:'):
      restored = eight[name.replace('state:', 'restored:')]
      np.testing.assert_array_equal(restored, one[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('rules', ['replicated', 'sharded'])
def test_samples_are_the_same_on_any_number_of_devices(results, rules):
  one, eight = results[1, 'replicated']['samples'], results[8, rules]['samples']
  assert one.shape == (16, 8, 8, 1) and np.abs(one[1:] - one[:-1]).max() > 0.1
  np.testing.assert_allclose(eight, one, atol=1e-5)


@pytest.mark.parametrize('sampler', ['ddim', pytest.param('ddpm', marks=pytest.mark.slow)])
def test_sample_i_is_the_same_for_any_batch_size(tiny, sampler):
  """In the network's units, to 1e-5, for batches of 1, 7 and 1000; guided, with noise in each step."""
  experiment = tiny(**{'sampler.name': sampler, 'sample.cfg_scale': 2.0, 'sample.num_steps': 8})
  keys = iter(jax.random.split(jax.random.key(3), 1000))
  params = jax.tree.map(  # Away from the zeros of the initialisation.
    lambda p: p + 0.03 * jax.random.normal(next(keys), p.shape),
    jax.jit(experiment.objective.init)()['model'],
  )
  generator, network = experiment.generator(), experiment.objective.network({'model': params})
  generate = jax.jit(lambda index, labels: generator(network, index, labels)[0])

  def samples(batch):
    index = np.arange(batch, dtype=np.uint32)
    return np.asarray(generate(index, experiment.sample_labels(index)))

  thousand = samples(1000)
  assert np.abs(thousand[1:] - thousand[:-1]).max() > 0.1  # They do differ from each other.
  np.testing.assert_allclose(samples(7), thousand[:7], atol=1e-5)
  np.testing.assert_allclose(samples(1), thousand[:1], atol=1e-5)
  late = generate(np.asarray([997], np.uint32), experiment.sample_labels(np.asarray([997])))
  np.testing.assert_allclose(late, thousand[997:998], atol=1e-5)
  assert thousand.dtype == jnp.float32
