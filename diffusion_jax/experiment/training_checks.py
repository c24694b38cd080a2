"""Problems of how a config trains that no single field shows."""

import dataclasses

from diffusion_jax.config.schema import Config
from diffusion_jax.training.objective import Objective


def training_problems(config: Config, objective: Objective) -> list[str]:
  """Warm-up, passes and dispatches that do not fit the number of steps or the objective."""
  problems, train = _dispatch_problems(config), config.train
  if config.optimizer.warmup_steps > train.num_steps:
    problems.append(
      f'config.optimizer.warmup_steps: got {config.optimizer.warmup_steps}, allowed up to '
      f'config.train.num_steps {train.num_steps}'
    )
  phases = {objective.phase(step) for step in (1, train.num_steps)}
  if train.accumulate > 1 and phases & set(objective.whole_batch):
    problems.append(
      f'config.train.accumulate: got {train.accumulate}, allowed 1 with the discriminator of '
      'config.objective.autoencoder, whose weight depends on the whole batch'
    )
  if train.steps_per_dispatch > 1 and len(phases) > 1:
    problems.append(
      f'config.train.steps_per_dispatch: got {train.steps_per_dispatch}, allowed 1 with the '
      f'{len(phases)} phases of config.objective.{config.objective.name}'
    )
  return problems


def _dispatch_problems(config: Config) -> list[str]:
  """What the loop does between steps has to fall between dispatches."""
  several, train = config.train.steps_per_dispatch, dataclasses.asdict(config.train)
  every = {f'train.{name}': train[name] for name in train if name.endswith('_every_steps')}
  every['checkpoint.every_steps'] = config.checkpoint.every_steps
  wrong = [f'config.{name} {steps}' for name, steps in every.items() if steps % several]
  if not wrong:
    return []
  nearest = max(n for n in range(1, several) if not any(steps % n for steps in every.values()))
  return [
    f'config.train.steps_per_dispatch: got {several}, allowed divisors of {", ".join(wrong)} '
    f'(nearest {nearest})'
  ]
