"""How far a solver's images are from those of a fine one, from the same noise: one model's own error aside.

    python scripts/paired_solvers.py WORKDIR [--steps=5,10,20,50,250] [--samples=500] [--out=FILE.md]

Compares deterministic samplers with DDIM in as many steps as `--fine` says, on a trained work directory without
guidance, and prints a Markdown table of the root of the mean square difference of pixels in [-1, 1], with the
network evaluations of a sample. Each row is printed as soon as it is there.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
import diffusion_jax as dj
from diffusion_jax.reporting.tables import markdown_table

SOLVERS = ('ddim', 'dpmpp_2m', 'deis', 'unipc', 'heun')


def made(workdir: Path, sampler: str, num_steps: int, samples: int) -> tuple[np.ndarray, float]:
  """The first samples in [-1, 1], and the evaluations of one."""
  changes = {'sampler.name': sampler, 'sample.num_steps': num_steps, 'sample.cfg_scale': 1.0}
  run = dj.load_run(workdir, changes)
  images = run.sample(indices=range(samples)).astype(np.float32) / 127.5 - 1
  return images, run.experiment.generator().evaluations()


def main() -> None:
  """Prints the table, and writes it if asked to."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('workdir', type=Path)
  parser.add_argument('--steps', default='5,10,20,50,250')
  parser.add_argument('--samples', type=int, default=500)
  parser.add_argument('--fine', type=int, default=1000)
  parser.add_argument('--out', type=Path)
  args = parser.parse_args()
  fine, _ = made(args.workdir, 'ddim', args.fine, args.samples)
  cells = [(sampler, int(steps)) for sampler in SOLVERS for steps in args.steps.split(',')]
  rows = []
  for sampler, steps in tqdm(cells, unit='cell'):
    images, evaluations = made(args.workdir, sampler, steps, args.samples)
    error = float(np.sqrt(np.mean((images - fine) ** 2)))
    rows.append([sampler, str(steps), f'{evaluations:g}', f'{error:.4f}'])
    tqdm.write(' '.join(rows[-1]))
  text = markdown_table(['sampler', 'steps', 'evaluations', 'paired RMSE'], rows)
  print(text)
  if args.out:
    args.out.write_text(text + '\n')


if __name__ == '__main__':
  main()
