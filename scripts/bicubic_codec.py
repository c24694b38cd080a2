"""PSNR of the simplest codec: held-out images reduced f times by antialiased bicubic, and enlarged again.

    python scripts/bicubic_codec.py DATA/NAME-SIZE-FINGERPRINT [--factor=4]

It stores H/f x W/f x C values an image, as many as an autoencoder of factor f with C latent channels,
and rounds none of them. PSNR is the mean over images, as `holdout_psnr` in metrics.jsonl of an autoencoder.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusion_jax.data import packed
from diffusion_jax.diffusion.pixels import psnr

FACTOR = flags.DEFINE_integer('factor', 4, 'How many times smaller, along each side.')


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """(H, W, C) float32 -> (height, width, C), bicubic; reducing, over an area as wide as it must be."""
  planes = [
    Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC)
    for plane in np.moveaxis(image, -1, 0)
  ]
  return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def error_of(image: np.ndarray, factor: int) -> np.ndarray:
  """Returns the error of one image (H, W, C) uint8, in units of half its range."""
  height, width, _ = image.shape
  image = image.astype(np.float32)
  kept = resize(image, height // factor, width // factor)
  return (np.clip(resize(kept, height, width), 0, 255) - image) / 127.5


def main(argv: list[str]) -> None:
  """Prints one line."""
  if len(argv) != 2:
    raise app.UsageError(f'got {len(argv) - 1} folders, allowed 1: a prepared set')
  folder = Path(argv[1])
  meta = packed.read_meta(folder)
  packed.verify(folder, meta, full=True)
  source = packed.open_split(folder, meta, 'holdout')
  found = [psnr(error_of(image, FACTOR.value)[None])[0] for image in source.values]
  print(f'{len(found):,} held-out images, {FACTOR.value}x bicubic: PSNR {np.mean(found):.2f} dB')


if __name__ == '__main__':
  app.run(main)
