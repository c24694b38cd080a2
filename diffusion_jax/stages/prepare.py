"""--mode=prepare: images in any form -> one prepared set under config.data.dir, and what it holds.

For a latent system then their latents too, once for every run with the same autoencoder.
"""

from pathlib import Path

from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.experiment.experiment import Experiment


def run(experiment: Experiment, workdir: Path) -> None:
  """Prepares, or finds it done; writes DIR/data.json and .png, and of latents DIR/latents.png."""
  if experiment.is_latent:
    check_devices(experiment)
    _ = experiment.first_stage  # What is wrong with it is told before hours of work.
    there = experiment.datasets.from_source()
    if there:
      preparation.tell_images(*there, workdir)
    else:
      preparation.prepare_images(experiment, workdir)
    preparation.prepare_latents(experiment, workdir)
  else:
    preparation.prepare_images(experiment, workdir)
