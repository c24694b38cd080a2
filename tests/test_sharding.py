"""Eight devices in any mesh train as one does, hold a part of the state each, and move what they must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
MESHES = ('8x1x1', '1x8x1', '4x2x1', '2x2x2')
CUT_INTO = {'8x1x1': 1, '1x8x1': 8, '4x2x1': 2, '2x2x2': 4}
SYSTEMS = ('dit', 'unet', 'autoencoder')
pytestmark = [pytest.mark.slow, pytest.mark.unoptimised]


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """Mesh -> system -> what tests/support/sharding_run.py wrote."""
  folder = tmp_path_factory.mktemp('sharding')
  for meshes in (('1x1x1',), MESHES):
    devices = 1 if meshes == ('1x1x1',) else 8
    subprocess.run(
      [sys.executable, '-m', 'tests.support.sharding_run', folder, *meshes],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)},
      check=True,
    )
  return {mesh: json.loads((folder / f'{mesh}.json').read_text()) for mesh in ('1x1x1', *MESHES)}


@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('mesh', MESHES)
def test_ten_steps_are_those_of_one_device(results, mesh, system):
  one, found = results['1x1x1'][system]['losses'], results[mesh][system]['losses']
  assert len(one) == 10 and one[0]['loss'] != one[-1]['loss']
  for expected, values in zip(one, found, strict=True):
    assert values.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(values[name], value, rtol=1e-5, err_msg=name)
  if system == 'autoencoder':
    assert 'discriminator_loss' in one[-1] and 'discriminator_loss' not in one[0]


@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('mesh', MESHES)
def test_a_device_holds_its_part_of_the_state(results, mesh, system):
  """What stays whole, biases and norms, is 1% of these small states and less of large ones."""
  found, parts = results[mesh][system], CUT_INTO[mesh]
  share = found['bytes'] / found['all_bytes']
  assert 1 / parts <= share <= 1 / parts + 0.015


def activations(found, batch):
  """(operation, shape, name of the operation in JAX) of collectives of what has a batch, before positions.

  batch: examples of a device. Kernels of these models begin with other numbers.
  """
  batches = (batch, 16)
  return [
    (operation, shape, name)
    for operation, _, shape, name in found['collectives']
    if len(shape) > 2 and shape[0] in batches and '/label/' not in name
  ]


@pytest.mark.parametrize('system', SYSTEMS)
@pytest.mark.parametrize('mesh', ('8x1x1', '1x8x1', '4x2x1'))
def test_without_tensor_no_activation_moves(results, mesh, system):
  """Kernels are gathered, twice, and gradients summed."""
  assert not activations(results[mesh][system], batch=2)
  kinds = {operation for operation, *_ in results[mesh][system]['collectives']}
  assert 'all-reduce' in kinds and ('all-gather' in kinds) == (mesh != '8x1x1')


def test_with_tensor_a_transformer_block_sums_activations_four_times(results):
  """Forward after attention and MLP, whose inputs are cut; backward before them (one block: it is scanned)."""
  found = activations(results['2x2x2']['dit'], batch=4)
  assert {(operation, *shape) for operation, shape, _ in found} == {('all-reduce', 4, 16, 64)}
  forward = [name.split('/')[-2] for _, _, name in found if '/jvp(' in name]
  backward = [name.split('/')[-2] for _, _, name in found if 'transpose(jvp(' in name]
  assert sorted(forward) == ['attention_out', 'mlp_out'] and sorted(backward) == ['mlp_in', 'qkv']


def test_with_tensor_blocks_of_a_unet_sum_activations_twice(results):
  found = activations(results['2x2x2']['unet'], batch=4)
  assert {operation for operation, *_ in found} == {'all-reduce'}
  blocks = ('down_0_0_residual', 'up_0_0_residual', 'mid_attention', 'up_1_0_attention')
  for block in blocks:
    names = [name for _, _, name in found if f'/{block}/' in name]
    layers = sorted(name.split(f'/{block}/')[1].split('/')[0] for name in names)
    assert layers == (['conv_in', 'conv_out'] if 'residual' in block else ['out', 'qkv'])
