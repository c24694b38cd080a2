"""The speeds that are wanted, in the order in which they are measured. Knowing them loads no JAX."""

from typing import NamedTuple

DEVICE = 'H200'  # The goals are those of one.
REPEATS = 5
CFG_SCALE = 4.0  # Of guided sampling.
TORCH_PARTS = ('train', 'sample')  # PyTorch has no other of these models here.
LEAST_SHARE, AIMED_SHARE = 1.0, 1.2  # Of the images/s of torch.compile in the same run.


class Goal(NamedTuple):
  """part: of a system, as benchmarks/speed.py has them. least, aim: images/s on one DEVICE."""

  title: str
  part: str
  least: float
  aim: float | None = None


GOALS = {
  'dit-s': Goal('DiT-S/2 on latents, training', 'train', 7000, 9000),
  'dit-b': Goal('DiT-B/2 on latents, training', 'train', 2200, 3000),
  'dit-l': Goal('DiT-L/2 on latents, training', 'train', 650, 900),
  'dit-xl': Goal('DiT-XL/2 on latents, training', 'train', 400, 620),
  'unet': Goal('UNet on pixels, training', 'train', 450, 650),
  'sample': Goal('DiT-B/2, guided sampling', 'sample', 60, 80),
  'decode': Goal('KL-f4, decoding', 'autoencoder', 1500),
  'features': Goal("Inception's features in float32", 'features', 2500),
}
TINY = ('dit-s', 'unet', 'sample', 'decode', 'features')


def names(size: str) -> list[str]:
  """Those of a size: at 'tiny', one DiT stands for all."""
  return list(GOALS if size == 'full' else TINY)


def verdict(value: float, least: float, aim: float | None) -> str:
  """Whether a value reaches a goal."""
  if aim is not None and value >= aim:
    return 'aim reached'
  return 'reached' if value >= least else '**not reached**'
