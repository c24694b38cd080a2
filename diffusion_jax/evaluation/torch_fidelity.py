"""The reference implementation itself (github.com/toshas/torch-fidelity): config.eval.backend 'torch_fidelity'.

It runs in a process of its own, `python -m diffusion_jax.evaluation.torch_fidelity REQUEST.json`: in one
that has imported TensorFlow, importing it ends the process.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.runtime import packages

# Our metrics, each with the name of theirs and of its options.
METRICS = {
  'fid': ('fid', {}),
  'inception_score': ('isc', {'splits': 'isc_splits'}),
  'kid': ('kid', {'subsets': 'kid_subsets', 'subset_size': 'kid_subset_size'}),
  'precision_recall': ('prc', {'neighbours': 'prc_neighborhood'}),
}
RESULTS = {
  'frechet_inception_distance': 'frechet_distance',
  'inception_score_mean': 'inception_score',
  'inception_score_std': 'inception_score_std',
  'kernel_inception_distance_mean': 'kernel_distance',
  'kernel_inception_distance_std': 'kernel_distance_std',
  'precision': 'precision',
  'recall': 'recall',
}
SUPPORTED = tuple(METRICS)
EXTRACTOR = 'inception-v3-compat'
SETS = ('samples', 'reference')
# Settings of glibc: the next layer uses memory that a layer freed. Else each maps new pages, which on a virtual
# machine took eight times as long as computing.
KEEPING_MEMORY = {'MALLOC_MMAP_THRESHOLD_': str(2**32), 'MALLOC_TRIM_THRESHOLD_': str(2**33)}


class Measured(NamedTuple):
  """Numbers by our names, and the features behind them if they were requested."""

  metrics: dict[str, float]
  samples: FeatureSet
  reference: FeatureSet


def version() -> str:
  """Returns the version of the installed package. Raises: InputError if there is none."""
  packages.require('torch_fidelity', 'eval', "config.eval.backend: 'torch_fidelity'", "use 'jax'")
  return importlib.metadata.version('torch-fidelity')


def arguments(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Our metrics and their options -> keyword arguments of torch_fidelity.calculate_metrics.

  Raises: InputError for a metric that it does not have.
  """
  others = sorted(set(metrics) - set(METRICS))
  if others:
    raise InputError(
      f"config.eval.metrics: got {', '.join(others)}, allowed with backend 'torch_fidelity': "
      f'{", ".join(SUPPORTED)}'
    )
  found: dict[str, Any] = {}
  for name, options in metrics.items():
    theirs, names = METRICS[name]
    found[theirs] = True
    found.update({names[option]: value for option, value in options.items()})
  return found


def measure(
  samples: np.ndarray | Path,
  reference: np.ndarray | Path,
  weights: Mapping[str, np.ndarray],
  metrics: Mapping[str, Mapping[str, Any]],
  *,
  batch_size: int,
  with_features: bool = False,
) -> Measured:
  """Metrics of images (N,H,W,C) uint8 (C 1 or 3) or .npy files of them.

  weights: the network's, by PyTorch's names, verified by the caller. metrics: name -> options.
  with_features: (N, 2048) and, of metrics with 'inception_score', logits (N, 1008) too.
  Raises: InputError if torch-fidelity is not there, lacks a metric, or stops.
  """
  version()
  request = {'arguments': {**arguments(metrics), 'batch_size': batch_size}, 'keep': with_features}
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    for name, images in zip(SETS, (samples, reference)):
      path = images
      if isinstance(images, np.ndarray):
        path = folder / f'{name}.npy'
        np.save(path, images)
      request[name] = str(Path(path).absolute())
    np.savez(folder / 'weights.npz', **weights)
    (folder / 'request.json').write_text(json.dumps(request))
    run_module(__name__, folder / 'request.json', "config.eval.backend: 'torch_fidelity'")
    found = json.loads((folder / 'result.json').read_text())
    metrics = {ours: found[theirs] for theirs, ours in RESULTS.items() if theirs in found}
    return Measured(metrics, *(_features(folder, name) for name in SETS))


def _features(folder: Path, name: str) -> FeatureSet:
  paths = [folder / f'{name}-{layer}.npy' for layer in ('2048', 'logits_unbiased')]
  return FeatureSet(*(np.load(path) if path.exists() else None for path in paths), labels=None)


def run_module(module: str, argument: Path | str, what: str) -> str:
  """Runs `python -m MODULE ARGUMENT` with the memory settings of torch-fidelity. Returns: its output.

  Raises: InputError that begins with `what` if the process fails.
  """
  command, root = [sys.executable, '-m', module, argument], Path(__file__).parents[2]
  environment = {**os.environ, **KEEPING_MEMORY}
  done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
    raise InputError(f'{what} stopped with exit code {done.returncode}: {last}')
  return done.stdout


def main(path: Path) -> None:
  """Runs in the other process: reads a request, and writes result.json beside it."""
  import torch
  import torch_fidelity

  asked, folder = json.loads(path.read_text()), path.parent
  # Their loader unpickles whatever it is given, so it gets a file that is made here, of plain arrays.
  with np.load(folder / 'weights.npz') as file:
    torch.save({k: torch.from_numpy(file[k]) for k in file.files}, folder / 'weights.pth')
  torch.backends.cudnn.allow_tf32 = False  # On GPUs; it rounds factors to 10 bits.

  class Images(torch.utils.data.Dataset):
    """(N,H,W,C) uint8 in a file -> (3,H,W) each."""

    def __init__(self, path):
      self.images = np.load(path, mmap_mode='r')

    def __len__(self):
      return len(self.images)

    def __getitem__(self, index):
      image = torch.from_numpy(self.images[index].transpose(2, 0, 1).copy())
      return image.expand(3, -1, -1)

  found = torch_fidelity.calculate_metrics(
    input1=Images(asked['samples']),
    input2=Images(asked['reference']),
    feature_extractor=EXTRACTOR,
    feature_extractor_weights_path=str(folder / 'weights.pth'),
    cuda=torch.cuda.is_available(),
    save_cpu_ram=True,  # No worker processes: the images are in memory.
    verbose=False,
    cache=asked['keep'],
    cache_root=str(folder / 'cache'),
    **{f'input{number}_cache_name': name for number, name in enumerate(SETS, start=1)},
    **asked['arguments'],
  )
  for path in (folder / 'cache').glob('*-features-*.pt'):
    name, layer = path.stem.split(f'-{EXTRACTOR}-features-')
    np.save(folder / f'{name}-{layer}.npy', torch.load(path, weights_only=True).numpy())
  (folder / 'result.json').write_text(json.dumps(found))


if __name__ == '__main__':
  main(Path(sys.argv[1]))
