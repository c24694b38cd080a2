"""--mode=evaluate: computes the metrics of a sample set against reference images, with their protocol.

An objective without samples, such as an autoencoder, is measured by its reconstructions of reference images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.config.schema import SPLITS
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.diffusion.pixels import psnr
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import agreement
from diffusion_jax.experiment.checks import check_data, check_devices, with_settings
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.weights import load_checkpoint
from diffusion_jax.reporting import images
from diffusion_jax.reporting.results import evaluation_table
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts
from diffusion_jax.sampling import measured, samples
from diffusion_jax.sampling.previews import Previews


def main(run: Run) -> None:
  """Makes the sample set if it is absent, measures it, writes DIR/eval/NAME.json and prints a table.

  Raises: InputError for a set that is incomplete or has other settings, and for metrics that need more
  images.
  """
  experiment, workdir = run.experiment, run.workdir
  check_devices(experiment)
  check_data(experiment)
  agreement.require_same_images(experiment.datasets)
  experiment = measured.with_num_samples(experiment)
  if not experiment.datasets.is_prepared():
    hosts.say('no prepared images: real images are neither measured nor shown beside the samples')
  evaluator = Evaluator(experiment)
  if experiment.objective.network:
    result = sample_result(experiment, evaluator, workdir)
  else:
    result = reconstruction_result(evaluator, workdir)
  baseline = measured.real_baseline(evaluator, result['protocol']['num_samples'])
  result |= {'real_baseline': baseline} if baseline else {}
  hosts.from_first(lambda: finish(result, workdir))


def sample_result(experiment: Experiment, evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
  """Measures sample sets, made first if they are absent."""
  if not measured.is_told_by_name(experiment, workdir):
    # Refuses a set of other settings before a network is trained.
    samples.find(experiment, workdir)
  warnings = measured.checked(evaluator, experiment.config.sample.num_samples)
  likelihoods = likelihood(experiment, workdir)  # First, for its checkpoint may be gone.
  result = measured.sample_result(experiment, evaluator, workdir, warnings)
  result['metrics'] |= likelihoods
  result['protocol'] |= measured.likelihood_protocol(experiment)
  return result


def likelihood(experiment: Experiment, workdir: Path) -> dict[str, float]:
  """That of held-out images under the checkpoint of the samples; {} if config.eval does not ask for it."""
  if not experiment.config.eval.nll_num_images:
    return {}
  _, meta, _ = measured.opened(experiment, workdir)
  step = meta['identity']['step']
  weights = load_checkpoint(with_settings(experiment, {'sample.checkpoint': str(step)}), workdir)
  return measured.likelihood_of(experiment, weights.state, step, {})


def reconstruction_result(evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
  """Measures reconstructions of the reference images; returns the same entries as sample_result."""
  experiment = evaluator.experiment
  if experiment.config.eval.reference not in SPLITS:
    raise InputError(
      f"config.eval.reference: got {experiment.config.eval.reference!r}, allowed 'holdout' or 'train', "
      'whose images the autoencoder reconstructs'
    )
  source = evaluator.reference.source
  count = min(experiment.config.eval.num_samples or source.num_examples, source.num_examples)
  warnings = measured.checked(evaluator, count)
  restored = load_checkpoint(experiment, workdir)
  indices = np.linspace(0, source.num_examples - 1, count).round().astype(int)
  hosts.say(f'reconstructing {count:,} images by step {restored.step}')
  real = source.read(indices)['image']
  made = Previews(experiment).reconstruct(restored.state, real)
  error = (made.astype(np.float32) - real) / 127.5
  name = f'reconstruction-{restored.step}'
  metrics = evaluator.measure_images(Arrays(made, name), np.arange(count))
  metrics.pop('label_accuracy', None)
  path, drawn = workdir / 'eval' / f'{name}.png', images.pairs(real[:20], made[:20], 4)
  hosts.from_first(lambda: files.write_png(path, drawn))
  return {
    'name': 'reconstruction',
    **measured.mean_over_seeds(
      [{'seed': 0, 'metrics': {**metrics, 'psnr': float(psnr(error).mean())}}]
    ),
    'images_per_s': None,
    'protocol': evaluator.protocol(count, 'of the reference'),
    'samples': {'step': restored.step, 'average': experiment.config.sample.average},
    **measured.made_by(evaluator, warnings),
  }


def finish(result: dict[str, Any], workdir: Path) -> None:
  """Writes the result beside those of other protocols and prints the table."""
  path, written = measured.write_result(result, workdir)
  print(evaluation_table(workdir / 'eval', written))
  print(f'written to {path}')
