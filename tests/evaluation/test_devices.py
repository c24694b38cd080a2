"""The same images give the same numbers on one device and on eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = {
  *('frechet_distance', 'inception_score', 'inception_score_std', 'kernel_distance'),
  *('kernel_distance_std', 'precision', 'recall'),
}


def measured(folder, devices, network):
  """What tests/support/evaluation_run.py wrote."""
  flags = os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={devices}'
  subprocess.run(
    [sys.executable, '-m', 'tests.support.evaluation_run', folder, str(devices), network],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    check=True,
  )
  return json.loads((folder / f'{network}-{devices}.json').read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
  'network', ['dataset_classifier', pytest.param('inception', marks=pytest.mark.full)]
)
def test_one_device_and_eight_give_the_same_numbers(tmp_path, network):
  one, eight = (measured(tmp_path, devices, network) for devices in (1, 8))
  own = (
    {'label_accuracy'} if network == 'dataset_classifier' else set()
  )  # Inception has other classes.
  assert set(one) == NAMES | own and one['frechet_distance'] > 0
  assert eight == pytest.approx(
    one, rel=1e-6, abs=1e-8
  )  # A deviation is a difference of scores above 1.
