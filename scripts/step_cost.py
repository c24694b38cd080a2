"""Compiles the training step of a config without running it, and prints what that took and what it needs.

    PYTHONPATH=. python scripts/step_cost.py dit_xl train.batch_size=8 model.dit.depth=56

Random numbers stand in for data and autoencoder. Memory and bytes are those that the compiler counts for this
device; operations inside a loop count once.
"""

import ast
import sys
import time
from collections.abc import Sequence
from typing import Any

from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.errors import Stop
from diffusion_jax.reporting.tables import quantity
from diffusion_jax.run import new_run
from diffusion_jax.runtime import xla_options
from diffusion_jax.training.compilation import lower_step
from diffusion_jax.training.step import make_train_step


def overrides_of(changes: Sequence[str]) -> dict[str, Any]:
  """FIELD=VALUE each, with the value as Python writes it, or a word -> field -> value."""
  overrides = {}
  for change in changes:
    field, _, text = change.partition('=')
    try:
      overrides[field] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      overrides[field] = text
  return overrides


def main(name: str, *changes: str) -> None:
  """changes: as overrides_of."""
  experiment = with_random_inputs(new_run(name, overrides_of(changes)).experiment, 2)
  objective, seed = experiment.objective, experiment.config.seed
  step = make_train_step(objective, seed, objective.phase(1), **experiment.step_options)
  inputs = experiment.abstract_state, experiment.abstract_batch, experiment.frozen, {}
  began = time.perf_counter()
  lowered = lower_step(step, *inputs)
  middle = time.perf_counter()
  compiled = xla_options.compiled(lowered)
  ended = time.perf_counter()
  print(f'lowering {middle - began:.1f} s, compiling {ended - middle:.1f} s')
  memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
  print(f'arguments {quantity(memory.argument_size_in_bytes, "B")}')
  print(f'temporary memory {quantity(memory.temp_size_in_bytes, "B")}')
  print(f'read and written {quantity(counted["bytes accessed"], "B")}')


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  try:
    main(*sys.argv[1:])
  except Stop as reason:
    sys.exit(str(reason))
