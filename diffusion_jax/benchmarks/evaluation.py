"""Measures evaluation against torch-fidelity: features of images, FID of features, and both from files.

Both start from what they load fastest: ours from safetensors, theirs from a .pth. Starting Python and
importing packages is left out of both. torch-fidelity runs with settings of the memory allocator under
which it was fastest (evaluation/torch_fidelity.py), and with batches of several sizes.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from safetensors.numpy import save_file

from diffusion_jax.benchmarks import timing
from diffusion_jax.benchmarks.timing import seconds
from diffusion_jax.config.options import option
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.prepare import cores
from diffusion_jax.evaluation import fid, torch_fidelity
from diffusion_jax.evaluation.extract import Extractor
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.pretrained import inception
from diffusion_jax.reporting.tables import table

PARTS = {
  'features': 'features of {num_images:,} images, images/s',
  'distance': 'mean, covariance and distance of two sets of {num_features:,} features, seconds',
  'total': 'FID and IS of {num_images:,} images, half against half, from files to numbers, seconds',
}
METRICS = {'fid': {}, 'inception_score': {'splits': 10}}


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """FID against torch-fidelity."""

  on_data: ClassVar = True
  in_one_process: ClassVar = True
  experiment: Experiment
  repeats: int
  num_images: int = option(1000, 'Images whose features are computed.')
  num_features: int = option(
    5000, 'Random features per set, whose moments and distance are computed.'
  )
  batch_sizes: tuple[int, ...] = option(
    (8, 64), 'Batch sizes of torch-fidelity, whose default is 64.'
  )

  def __post_init__(self):
    features = self.experiment.config.eval.features.name
    if features != 'inception':
      raise ValueError(
        'num_images: torch-fidelity has the features of inception alone, got '
        f'config.eval.features.name {features!r}'
      )

  def measure(self, folder: Path) -> dict[str, Any]:
    """Measures ours and theirs in turns; writes temporary files to `folder`."""
    torch_fidelity.version()  # Fails at once if it is not installed.
    evaluator = Evaluator(self.experiment)
    extractor = evaluator.extractor
    source = self.experiment.datasets.images('train')
    chosen = np.linspace(0, source.num_examples - 1, self.num_images).round().astype(int)
    images = source.read(chosen)['image']
    np.save(folder / 'images.npy', images)
    config, cache = self.experiment.config, self.experiment.datasets.folder
    weights = inception.load(config.eval.inception_weights, cache, allow_pickle=config.allow_pickle)
    save_file(dict(weights.state), folder / 'weights.safetensors')
    ours = f'diffusion_jax, batch {extractor.batch_size}'
    theirs = {size: f'torch-fidelity, batch {size}' for size in self.batch_sizes}
    speeds = {part: {name: [] for name in (ours, *theirs.values())} for part in PARTS}
    extract(extractor, images[: 2 * extractor.batch_size])  # Compiles.
    for repeat in range(self.repeats):
      print(f'repeat {repeat + 1} of {self.repeats}', flush=True)
      extracting = seconds(functools.partial(extract, extractor, images))
      speeds['features'][ours].append(len(images) / extracting)
      speeds['total'][ours].append(seconds(functools.partial(self._total, images)))
      for size, name in theirs.items():
        found = time_torch_fidelity(folder, size, self.num_features)
        speeds['features'][name].append(len(images) / found['features'])
        speeds['distance'][ours].append(found['our_distance'])
        speeds['distance'][name].append(found['distance'])
        speeds['total'][name].append(found['total'])
    return speeds

  def _total(self, images: np.ndarray) -> None:
    """Computes FID and IS from images, compiling anew."""
    jax.clear_caches()
    fresh = Evaluator(self.experiment)
    half = len(images) // 2
    samples, reference = (extract(fresh.extractor, part) for part in (images[:half], images[half:]))
    for name, metric in fresh.metrics.items():
      if name in METRICS:
        metric(samples, reference)

  def report(self, results: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Makes a table for each part: median, range, and ours against each of theirs."""
    parts = [
      f'\n{cores()} cores, {jax.devices()[0].device_kind}; torch-fidelity {torch_fidelity.version()}'
    ]
    for part, title in PARTS.items():
      medians = [float(np.median(values)) for values in results[part].values()]
      ratios = [m / medians[0] if part != 'features' else medians[0] / m for m in medians]
      rows = [[*row, f'{r:.2f}x'] for row, r in zip(timing.rows(results[part], '.3g'), ratios)]
      text = title.format(num_images=self.num_images, num_features=self.num_features)
      parts.append(f'\n{text}\n\n{table(["", "median", "range", "ours is faster by"], rows)}')
    return '\n'.join(parts) + '\n'


def extract(extractor: Extractor, images: np.ndarray) -> FeatureSet:
  """Computes the features of images in memory."""
  return extractor(Arrays(images, ''), np.arange(len(images)))


def some_features(count: int, seed: int) -> np.ndarray:
  """Draws (count, 2048) float32, correlated and not negative, as Inception's are; a function of the seed."""
  rng = np.random.default_rng(seed)
  few = rng.standard_normal((count, 256), np.float32)
  mixed = few @ rng.standard_normal((256, 2048), np.float32)
  return np.maximum(mixed / 16 + 0.1 * rng.standard_normal((count, 2048), np.float32), 0)


def distance(samples: np.ndarray, reference: np.ndarray) -> float:
  """Computes FID from features."""
  return fid.distance(*fid.feature_stats(samples), *fid.feature_stats(reference))


def time_torch_fidelity(folder: Path, batch_size: int, num_features: int) -> dict[str, float]:
  """Measures the seconds of each part in another process, with our distance, which needs the same memory."""
  request = {'folder': str(folder), 'batch_size': batch_size, 'num_features': num_features}
  printed = torch_fidelity.run_module(__name__, json.dumps(request), 'timing torch-fidelity')
  return json.loads(printed.splitlines()[-1])


def main(folder: str, batch_size: int, num_features: int) -> None:
  """Times torch-fidelity in the process of time_torch_fidelity, and prints seconds as JSON."""
  import torch
  import torch_fidelity as theirs
  from safetensors.numpy import load_file
  from torch_fidelity import metric_fid, utils

  images = torch.from_numpy(np.load(f'{folder}/images.npy')).permute(0, 3, 1, 2).contiguous()
  images = images.expand(-1, 3, -1, -1)
  state = load_file(f'{folder}/weights.safetensors')
  torch.save({n: torch.from_numpy(x) for n, x in state.items()}, f'{folder}/weights.pth')
  # save_cpu_ram: no worker processes, for the images are in memory.
  how = dict(
    cuda=torch.cuda.is_available(), batch_size=batch_size, verbose=False, save_cpu_ram=True
  )
  common = dict(how, cache=False, feature_extractor_weights_path=f'{folder}/weights.pth')

  def dataset(images):
    return torch.utils.data.Subset(images, range(len(images)))

  layers = ['2048', 'logits_unbiased']
  network = utils.create_feature_extractor('inception-v3-compat', layers, **common)
  features: Callable = functools.partial(
    utils.get_featuresdict_from_dataset, feat_extractor=network, **how
  )
  features(dataset(images[: 2 * batch_size]))
  found = {'features': seconds(lambda: features(dataset(images)))}
  sets = [some_features(num_features, seed) for seed in (0, 1)]

  def fid_of_features():
    fitted = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in sets]
    metric_fid.fid_statistics_to_metric(*fitted, verbose=False)

  for _ in range(2):  # In turns; the first time, both load what they need.
    found['distance'] = seconds(fid_of_features)
    found['our_distance'] = seconds(lambda: distance(*sets))
  half = len(images) // 2
  halves = dict(input1=dataset(images[:half]), input2=dataset(images[half:]))
  asked = dict(fid=True, isc=True, feature_extractor='inception-v3-compat')
  found['total'] = seconds(lambda: theirs.calculate_metrics(**halves, **common, **asked))
  print(json.dumps(found))


if __name__ == '__main__':
  main(**json.loads(sys.argv[1]))
