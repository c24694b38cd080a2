"""How far the images of sample sets are from those of another set that was drawn from the same noise.

    python scripts/paired_sets.py FINE SET [SET ...] [--samples=1000]

FINE and SET are folders of sample sets, as sampling and sweeps keep them in DIR/samples. Sets of one seed
and the same labels are pairs: sample i of each began from the same noise. Prints a Markdown table of the
root of the mean square difference of pixels in [-1, 1]. scripts/paired_solvers.py draws its images itself.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusion_jax.errors import InputError, Stop
from diffusion_jax.reporting.tables import markdown_table
from diffusion_jax.sampling import sample_set

SAME = ('seed', 'labels', 'data')  # Entries of a set's identity that decide noise and labels.


def images_of(folder: Path, samples: int, wanted: dict[str, Any]) -> np.ndarray:
  """The first samples of a set in [-1, 1]. Raises: InputError if those of `wanted` are no pairs of them."""
  found = sample_set.read_meta(folder)['identity']
  for key in SAME:
    if found.get(key) != wanted.get(key):
      raise InputError(
        f'{folder}: its {key} is {found.get(key)!r}, that of the first set {wanted.get(key)!r}: their '
        'samples are no pairs'
      )
  images = sample_set.open_parts(folder, samples).read(np.arange(samples))['image']
  return images.astype(np.float32) / 127.5 - 1


def main(words: list[str] | None = None) -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('fine', type=Path)
  parser.add_argument('sets', type=Path, nargs='+')
  parser.add_argument('--samples', type=int, default=1000)
  args = parser.parse_args(words)
  rows = []
  try:
    wanted = sample_set.read_meta(args.fine)['identity']
    fine = images_of(args.fine, args.samples, wanted)
    for folder in tqdm(args.sets, unit='set', delay=3):
      error = images_of(folder, args.samples, wanted) - fine
      rows.append([folder.name, f'{np.sqrt(np.mean(error**2)):.4f}'])
  except Stop as reason:
    sys.exit(str(reason))
  print(markdown_table(['set', f'to {args.fine.name}'], rows))


if __name__ == '__main__':
  main()
