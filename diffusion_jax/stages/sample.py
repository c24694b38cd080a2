"""--mode=sample: makes N images from a checkpoint, in parts that survive an interruption.

DIR/samples/NAME/ holds part-*.npz (images uint8 NHWC, labels, index), meta.json, grid.png,
denoising.gif, frames.npz and, for other tools, what config.sample.export names: samples.npz, png/.
Sample i depends on the seed and i alone, so a set can be finished or enlarged with another batch size or
on other devices. A set belongs to one step and its parameters. Sets of other steps lie beside it, in
NAME-stepSTEP, or in NAME-stepSTEP-PARAMETERS where the same step was trained again.

Several processes, one a host, share a file system. Each writes parts with the rows that its devices hold;
the first process alone claims the folder, draws, exports and reports progress.
"""

from pathlib import Path

import numpy as np

from diffusion_jax.diffusion.pixels import psnr
from diffusion_jax.reporting import images
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts
from diffusion_jax.sampling import inversion, samples

BETWEEN = 6  # Images from one to the other.


def main(run: Run) -> None:
  """Makes the missing parts of the sample set, its pictures and its exports."""
  if run.config.sample.invert:
    inversion.require_deterministic(run.experiment)
    run.experiment.datasets.images('holdout')  # Fails before anything is sampled.
  folder = samples.complete(run.experiment, run.workdir, run.given)
  if run.config.sample.invert:
    draw_inversion(run, folder / 'inversion.png')


def draw_inversion(run: Run, path: Path) -> None:
  """Draws held-out images: each, its noise, what is sampled from that, and the way to another of its class."""
  source, count = run.experiment.datasets.images('holdout'), run.config.sample.invert
  labels = source.read(np.arange(source.num_examples))['label']
  chosen = np.linspace(0, source.num_examples - 1, min(count, len(labels))).round().astype(int)
  others = [np.flatnonzero(labels == labels[i])[-1] for i in chosen]
  first, second = (source.read(np.asarray(numbers))['image'] for numbers in (chosen, others))
  known = labels[chosen] if run.config.num_classes else None
  noise = run.invert(first, known)
  again = run.sample(known, noise=noise, cfg_scale=1.0)
  way = run.interpolate(first, second, known, count=BETWEEN)
  error = psnr((again.astype(np.float32) - first) / 127.5)
  seen = run.to_images(noise / 3)
  rows = np.concatenate([np.stack([first, seen, again], axis=1), way, second[:, None]], axis=1)
  names = [run.label_names[y] for y in known] if run.config.num_classes else ()
  hosts.from_first(lambda: files.write_png(path, images.grid(rows, names)))
  hosts.say(
    f'held-out images, their noise and samples of it: PSNR {np.median(error):.1f} dB (median of {len(error)}); '
    f'{path}'
  )
