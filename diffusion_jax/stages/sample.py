"""--mode=sample: makes N images from a checkpoint, in parts that survive an interruption.

DIR/samples/NAME/ holds part-*.npz (images uint8 NHWC, labels, index), meta.json, grid.png,
denoising.gif, frames.npz and, for other tools, what config.sample.export names: samples.npz, png/.
Sample i depends on the seed and i alone, so a set can be finished or enlarged with another batch size or
on other devices. A set belongs to one step and its parameters. Sets of other steps lie beside it, in
NAME-stepSTEP, or in NAME-stepSTEP-PARAMETERS where the same step was trained again.

Several processes, one a host, share a file system. Each writes parts with the rows that its devices hold;
the first process alone claims the folder, draws, exports and reports progress.
"""

from diffusion_jax.run import Run
from diffusion_jax.sampling import samples


def main(run: Run) -> None:
  """Makes the missing parts of the sample set, its pictures and its exports."""
  samples.complete(run.experiment, run.workdir, run.given)
