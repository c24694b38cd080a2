"""Times the training step of a config under several settings in turns, and compares each with the first.

    PYTHONPATH=. python scripts/compare_steps.py cifar10 model.name=unet train.batch_size=8 \\
        -- model.unet.dropout=0.0 -- model.unet.dropout=0.1

What stands before the first `--` holds for all settings. Random numbers stand in for data and autoencoder. Each
step runs once to warm up, then 10 times in its turn (REPEATS=N in the environment changes that).
"""

import itertools
import os
import sys

import jax
from step_cost import overrides_of
from tqdm import tqdm

from diffusion_jax.benchmarks import timing
from diffusion_jax.benchmarks.loop import CONFIDENCE, cost
from diffusion_jax.benchmarks.speed import train_parts
from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.errors import Stop
from diffusion_jax.reporting.tables import table
from diffusion_jax.run import new_run


def main(name: str, *words: str) -> None:
  """words: FIELD=VALUE for all, then `--` before those of each setting."""
  groups = [list(found) for is_end, found in itertools.groupby(words, '--'.__eq__) if not is_end]
  given = [] if words[:1] == ('--',) else groups.pop(0)
  steps = {}
  for group in groups:
    experiment = new_run(name, overrides_of([*given, *group])).experiment
    size = max(experiment.config.train.batch_size, 2)
    ((_, make),) = train_parts(with_random_inputs(experiment, size))
    steps[' '.join(group)] = make().run
    jax.block_until_ready(steps[' '.join(group)]())
  times = {title: [] for title in steps}
  for _ in tqdm(range(int(os.environ.get('REPEATS', '10'))), unit='turn'):
    for title, run in steps.items():
      times[title].append(1e3 * timing.seconds(lambda run=run: jax.block_until_ready(run())))
  first, *others = times
  print(table(['setting', 'ms a step', 'range'], timing.rows(times, '.4g')))
  for title in others:
    low, mean, high = cost(times[first], times[title])
    print(
      f'{title} beside {first}: {mean:+.1%}, {CONFIDENCE:.0%} interval {low:+.1%} .. {high:+.1%}'
    )


if __name__ == '__main__':
  if '--' not in sys.argv[2:]:
    sys.exit(__doc__)
  try:
    main(*sys.argv[1:])
  except Stop as reason:
    sys.exit(str(reason))
