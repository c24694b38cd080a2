"""--mode=prepare: turns images in any form into one prepared set under config.data.dir.

A latent system's images are then encoded, once for every run with the same autoencoder. Several processes,
one a host, take a share of the images each.
"""

from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.run import Run
from diffusion_jax.runtime import hosts


def main(run: Run) -> None:
  """Prepares what is missing; writes DIR/data.json, DIR/data.png and, for latents, DIR/latents.png."""
  experiment, workdir = run.experiment, run.workdir
  if not experiment.is_latent:
    preparation.prepare_images(experiment, workdir)
    return
  check_devices(experiment)
  _ = experiment.first_stage  # Fails on a bad autoencoder before hours of work.

  def tell():
    there = experiment.datasets.from_source()
    if there:
      preparation.tell_images(*there, workdir)
    return bool(there)

  if not hosts.from_first(tell):
    preparation.prepare_images(experiment, workdir)
  preparation.prepare_latents(experiment, workdir)
