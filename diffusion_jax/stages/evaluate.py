"""--mode=evaluate: the metrics of a sample set against held-out images, and what they mean."""

import datetime
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import FeatureNetwork, FeatureSet
from diffusion_jax.experiment.checks import check_data, check_devices
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting.tables import table
from diffusion_jax.runtime import sample_set
from diffusion_jax.stages import sample
from diffusion_jax.types import DataSource


def run(experiment: Experiment, workdir: Path) -> None:
  """Makes the samples that are missing, measures, writes DIR/eval/NAME.json and prints a table."""
  sample.require_diffusion(experiment)
  check_devices(experiment)
  check_data(experiment)
  num_samples = experiment.config.sample.num_samples
  if num_samples < 2:
    raise InputError(f'config.sample.num_samples: got {num_samples}, allowed >= 2 to evaluate')
  folder = workdir / 'samples' / sample.set_name(experiment)
  if not sample.is_complete(experiment, folder):
    sample.run(experiment, workdir)
  meta = sample_set.read_meta(folder)
  print(f'evaluating {num_samples:,} samples of step {meta["identity"]["step"]} in {folder}')
  network = experiment.features()
  for name, value in network.notes.items():
    print(f'{network.name}: {name.replace("_", " ")} {value:.4f}')
  holdout = experiment.datasets.images('holdout')
  reference = read_features(network, holdout, holdout.num_examples)
  made, labels = sample_set.load(folder, num_samples)
  generated = network.extract(made, labels if experiment.config.num_classes else None)
  protocol = {
    'num_samples': num_samples,
    'features': network.name,
    'features_digest': network.digest,
    'reference': holdout.fingerprint,
    'reference_size': holdout.num_examples,
    'resize': 'none',
    'quantisation': 'floor(127.5 x + 128)',
    'metrics': {c.name: dict(c.options) for c in experiment.config.eval.metrics},
  }
  protocol = json.loads(json.dumps(protocol))  # As it will be read again: lists for tuples.
  result = {
    'name': folder.name,
    'metrics': measure(experiment, generated, reference),
    'images_per_s': meta.get('images_per_s'),
    'protocol': protocol,
    'samples': meta['identity'],
    'features_notes': network.notes,
    'jax': jax.__version__,
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
  }
  if experiment.config.eval.real_baseline:
    train = experiment.datasets.images('train')
    count = min(num_samples, train.num_examples)
    real = read_features(network, train, count)
    result['real_baseline'] = {
      'num_images': count,
      'metrics': measure(experiment, real, reference),
    }
  path = result_path(workdir, folder.name, protocol)
  sample_set.write_json(path, result)
  print(results_table(workdir, result))
  print(f'written to {path}; pictures in {folder}')


def result_path(workdir: Path, name: str, protocol: dict[str, Any]) -> Path:
  """DIR/eval/NAME.json, with a suffix if that holds a result of another protocol."""
  path = workdir / 'eval' / f'{name}.json'
  path.parent.mkdir(exist_ok=True)
  if path.exists() and read_result(path).get('protocol') != protocol:
    digest = zlib.crc32(json.dumps(protocol, sort_keys=True).encode())
    return path.with_stem(f'{name}-{digest:08x}')
  return path


def read_features(network: FeatureNetwork, source: DataSource, count: int) -> FeatureSet:
  """Features of `count` images spread evenly over a data source."""
  batch = source.read(np.linspace(0, source.num_examples - 1, count).round().astype(int))
  return network.extract(batch['image'], batch['label'])


def measure(experiment: Experiment, generated: FeatureSet, reference: FeatureSet) -> dict:
  """All metrics of config.eval."""
  results: dict[str, float] = {}
  for metric in experiment.metrics():
    results.update(metric(generated, reference))
  return results


def results_table(workdir: Path, result: dict[str, Any]) -> str:
  """This result, the others of this work directory under the same protocol, and the real images."""
  others = [read_result(path) for path in sorted((workdir / 'eval').glob('*.json'))]
  comparable = [other for other in others if other.get('protocol') == result['protocol']]
  names = [name for name in result['metrics'] if not name.endswith('_std')]
  rows = [
    [other['name'], *cells(other['metrics'], names), speed(other['images_per_s'])]
    for other in comparable
  ]
  if 'real_baseline' in result:
    rows.append(['real training images', *cells(result['real_baseline']['metrics'], names), ''])
  protocol = result['protocol']
  title = (
    f'{protocol["num_samples"]:,} samples against {protocol["reference_size"]:,} held-out images, '
    f'features: {protocol["features"]}'
  )
  header = ['samples', *(name.replace('_', ' ') for name in names), 'images/s']
  return f'\n{title}\n\n{table(header, rows)}\n'


def read_result(path: Path) -> dict[str, Any]:
  """A stored result, or nothing if it cannot be read."""
  try:
    return json.loads(path.read_text())
  except ValueError:
    print(f'{path}: not JSON, left out of the table')
    return {}


def cells(metrics: dict[str, float], names: list[str]) -> list[str]:
  """Each metric with its deviation where there is one."""
  return [
    f'{metrics[n]:.4g}' + (f' +- {metrics[n + "_std"]:.2g}' if n + '_std' in metrics else '')
    for n in names
  ]


def speed(images_per_s: float | None) -> str:
  """Sampling speed, compiling aside."""
  return f'{images_per_s:.1f}' if images_per_s else ''
