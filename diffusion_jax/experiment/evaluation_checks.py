"""Finds problems of evaluation settings and class counts for checks.py, each as one line."""

from collections.abc import Mapping

from diffusion_jax.config.schema import SPLITS, Config
from diffusion_jax.evaluation import torch_fidelity
from diffusion_jax.evaluation.types import Metric
from diffusion_jax.training.objective import Objective


def evaluation_problems(
  config: Config, metrics: Mapping[str, Metric], objective: Objective
) -> list[str]:
  """Lists the problems of config.eval and of config.checkpoint.best_metric."""
  problems, every = [], config.train.eval_every_steps
  own = [f'holdout_{name}' for name in objective.holdout_metrics]
  names = [name for metric in metrics.values() for name in metric.names]
  best = config.checkpoint.best_metric
  if best not in (*own, *names):
    problems.append(
      f'config.checkpoint.best_metric: got {best!r}, allowed for objective {config.objective.name!r}: '
      f'{", ".join(own)}'
      f'; of config.eval.metrics: {", ".join(names)}'
    )
  elif best not in own and (not every or config.checkpoint.every_steps % every):
    problems.append(
      f'config.checkpoint.best_metric: got {best!r}, but config.train.eval_every_steps is {every}; '
      f'allowed divisors of config.checkpoint.every_steps {config.checkpoint.every_steps}, so that every '
      'checkpoint is measured'
    )
  if config.eval.backend == 'torch_fidelity':
    other = sorted(set(metrics) - set(torch_fidelity.SUPPORTED))
    if other:
      problems.append(
        f"config.eval.metrics: got {', '.join(other)}, allowed with backend 'torch_fidelity': "
        f'{", ".join(torch_fidelity.SUPPORTED)}'
      )
    if config.eval.features.name != 'inception':
      problems.append(
        f"config.eval.backend: got 'torch_fidelity', allowed 'jax' with config.eval.features.name "
        f"{config.eval.features.name!r}: torch-fidelity has 'inception'"
      )
    if every:
      problems.append(
        "config.eval.backend: got 'torch_fidelity', allowed 'jax' with config.train.eval_every_steps > 0"
      )
  if config.eval.nll_num_images and (config.space == 'latent' or not objective.network):
    what = 'in latent space' if objective.network else f'with objective {config.objective.name!r}'
    problems.append(
      f'config.eval.nll_num_images: got {config.eval.nll_num_images}, allowed 0 {what}'
    )
  if not objective.network and every and config.eval.reference not in SPLITS:
    problems.append(
      f"config.eval.reference: got {config.eval.reference!r}, allowed 'holdout', 'train' for an autoencoder"
    )
  return problems


def count_problems(config: Config) -> list[str]:
  """Lists the problems of config.sample.label_counts."""
  sample, counts, num_classes = config.sample, config.sample.label_counts, config.num_classes
  if not counts:
    return []
  problems, path = [], 'config.sample.label_counts'
  if sample.labels:
    problems.append(f'{path}: got {counts}, allowed () beside config.sample.labels: one of the two')
  if len(counts) != num_classes:
    allowed = f'{num_classes}, one a class' if num_classes else 'none: the model has no classes'
    problems.append(f'{path}: got {len(counts)} counts, allowed {allowed}')
  if min(counts) < 0:
    problems.append(f'{path}: got {min(counts)} among the counts, allowed >= 0')
  elif sum(counts) != sample.num_samples:
    problems.append(
      f'{path}: got counts that sum to {sum(counts)}, allowed those that sum to '
      f'config.sample.num_samples {sample.num_samples}'
    )
  elif config.eval.num_samples not in (0, sum(counts)):
    problems.append(
      f'config.eval.num_samples: got {config.eval.num_samples}, allowed 0 or the {sum(counts)} of '
      f'{path}'
    )
  return problems
