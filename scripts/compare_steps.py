"""Times the training step of a config under several settings in turns, and compares each with the first.

    PYTHONPATH=. python scripts/compare_steps.py cifar10 model.name=unet train.batch_size=8 \\
        -- model.unet.dropout=0.0 -- model.unet.dropout=0.1
    PYTHONPATH=. python scripts/compare_steps.py cifar10 model.name=unet train.batch_size=8 \\
        -- -- xla -- xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT

What stands before the first `--` holds for all settings. A setting with words that begin with
xla is compiled with these options of the compiler instead of ours, and with none if `xla` is the only one.
Random numbers stand in for data and autoencoder. Each step runs once to warm up, then 10 times in its turn
(REPEATS=N in the environment changes that).
"""

import contextlib
import os
import sys
from unittest import mock

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
from diffusion_jax.runtime import xla_options


def compiled_with(words: list[str]) -> contextlib.AbstractContextManager:
  """These options, and `xla` for none; without a word those of the package."""
  if not words:
    return contextlib.nullcontext()
  options = overrides_of([word for word in words if word != 'xla'])
  return mock.patch.object(xla_options, 'for_convolutions', lambda _: options)


def main(name: str, *words: str) -> None:
  """words: FIELD=VALUE for all, then `--` before those of each setting."""
  ends = [i for i, word in enumerate(words) if word == '--']
  given, steps = words[: ends[0]], {}
  for start, end in zip(ends, [*ends[1:], None]):
    group = words[start + 1 : end]
    title = ' '.join(group) or 'as given'
    fields = [word for word in (*given, *group) if not word.startswith('xla')]
    experiment = new_run(name, overrides_of(fields)).experiment
    size = max(experiment.config.train.batch_size, 2)
    ((_, make),) = train_parts(with_random_inputs(experiment, size))
    with compiled_with([word for word in group if word.startswith('xla')]):
      steps[title] = make().run
    jax.block_until_ready(steps[title]())
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
