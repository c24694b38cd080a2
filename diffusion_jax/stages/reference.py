"""--mode=reference: computes features and statistics of config.eval.reference once for every run.

Features are kept under config.data.dir, keyed by the content of the images and of the network, where
evaluations find them. DIR/reference-FINGERPRINT.npz holds mu and sigma for other tools and hosts.
"""

import numpy as np

from diffusion_jax.config.schema import SPLITS
from diffusion_jax.data import adm
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.run import Run
from diffusion_jax.runtime import hosts


def main(run: Run) -> None:
  """Computes the features, or finds them; writes the statistics. Raises: InputError without images."""
  experiment, workdir = run.experiment, run.workdir
  check_devices(experiment)
  if experiment.config.eval.reference in SPLITS:
    preparation.ensure_images(experiment, workdir)
  evaluator = Evaluator(experiment)
  source = evaluator.reference.source
  if source is None:
    raise InputError(
      f'config.eval.reference: {experiment.config.eval.reference}: it holds statistics already; allowed '
      'images'
    )
  found, network = evaluator.reference_features, evaluator.network
  mean, covariance = found.stats
  path = workdir / f'reference-{evaluator.reference.fingerprint}.npz'
  hosts.from_first(lambda: adm.write_feature_stats(path, mean, covariance))
  hosts.say(
    f'{source.num_examples:,} images ({evaluator.reference.fingerprint}), network {network.name} '
    f'{network.digest[:16]}: {len(mean):,} features, mean {np.mean(mean):.6f}, trace of the covariance '
    f'{np.trace(covariance):.4f}\n'
    f'done: {path} (mu, sigma); features are kept in {evaluator.cache}'
  )
