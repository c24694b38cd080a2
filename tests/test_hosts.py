"""Two processes with two devices each see what one process with one device sees, each image once."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.experiment.checks import create
from diffusion_jax.stages import prepare
from tests.conftest import tiny_mapping

ROOT = Path(__file__).parents[1]


def run(folder, num_processes, axes):
  """What process 0 of tests/host_run.py wrote."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = str(free.getsockname()[1])
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(num_processes)}
  environment.pop('XLA_FLAGS', None)
  command = [sys.executable, '-m', 'tests.host_run', str(folder), str(num_processes)]
  processes = [
    subprocess.Popen([*command, str(process), port, axes], cwd=ROOT, env=environment)
    for process in range(num_processes)
  ]
  try:
    assert [process.wait(timeout=200) for process in processes] == [0] * num_processes
  finally:
    for process in processes:
      process.kill()
  with np.load(folder / f'hosts-{num_processes}-{axes}.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hosts')
  prepare.ensure(create(tiny_mapping(folder)), folder / 'prepared')
  return folder


@pytest.fixture(scope='module')
def one(folder):
  return run(folder, 1, 'data')


@pytest.mark.parametrize('axes', ['data', pytest.param('tensor', marks=pytest.mark.slow)])
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
