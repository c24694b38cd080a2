"""Run by tests/evaluation/test_devices.py in a process of its own, with as many CPU devices as asked for.

    python -m tests.support.evaluation_run FOLDER NUM_DEVICES NETWORK

Writes FOLDER/NETWORK-NUM.json: all metrics of 40 photographs against 48 others.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.config.plugins import plugin_names
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.pretrained import inception
from tests.conftest import tiny_mapping
from tests.fixtures.inception_weights import crops, state

METRICS = {
  'eval.metrics': tuple(plugin_names('evaluation')),
  'eval.kid.subsets': 10,
  'eval.kid.subset_size': 20,
  'eval.inception_score.splits': 4,
}


def main(folder: Path, num_devices: int, network: str) -> None:
  assert jax.device_count() == num_devices
  own = folder / f'own-{num_devices}'
  inception.keep(own / 'data', inception.InceptionWeights(state(), inception.SHA256))
  changes = {**METRICS, 'eval.features.name': network, 'eval.batch_size': 2}
  if network == 'inception':
    np.savez(folder / f'reference-{num_devices}.npz', arr_0=crops(48, 32, seed=1))
    changes |= {'eval.reference': str(folder / f'reference-{num_devices}.npz')}
    changes |= {'data.image_size': 32, 'data.channels': 3}
    samples = Arrays(crops(40, 32), 'samples', np.arange(40) % 10)
  experiment = create(tiny_mapping(own, **changes))
  if network != 'inception':
    preparation.ensure(experiment, own / 'prepared')
    train = experiment.datasets.images('train')
    samples = Arrays(train.values[:40], 'samples', train.labels[:40])
  evaluator = Evaluator(experiment)
  evaluator.check(40)
  found = evaluator.measure_images(samples, np.arange(40))
  (folder / f'{network}-{num_devices}.json').write_text(json.dumps(found))


if __name__ == '__main__':
  main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
