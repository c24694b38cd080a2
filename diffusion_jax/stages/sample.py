"""--mode=sample: N images from a checkpoint, in parts that survive an interruption.

DIR/samples/NAME/ holds part-*.npz (images uint8 NHWC, labels, index), meta.json, grid.png,
denoising.gif, frames.npz, and for other tools what config.sample.export names: samples.npz, png/.
Sample i depends on the seed and on i alone, so a set can be finished, or enlarged, with another batch
size or on other devices. A set is of one step and its parameters: those of others go beside it, into
NAME-stepSTEP, and into NAME-stepSTEP-PARAMETERS where the same step was trained again.

Several processes, one a host, share a file system. Each writes parts of the rows that its devices
hold; the first one alone claims the folder, draws, exports and says how far they are.
"""

from pathlib import Path

from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime.checkpoint import Restored
from diffusion_jax.sampling import samples


def run(experiment: Experiment, workdir: Path, restored: Restored | None = None) -> None:
  """Makes what is missing of the sample set, its pictures and exports.

  restored: the weights, where they have been read.
  """
  samples.complete(experiment, workdir, restored)
