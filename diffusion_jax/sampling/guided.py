"""The guidance of a sample set: its part of the set's name and settings, and the network of autoguidance."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffusion_jax.diffusion.guidance import GuidanceOptions
from diffusion_jax.experiment import guide
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.models.latents import Scaling


def is_autoguided(experiment: Experiment) -> bool:
  """Returns whether another network guides these samples."""
  return experiment.has_guide and experiment.config.sample.cfg_scale != 1


def load_guide(
  experiment: Experiment, workdir: Path, scaling: Scaling | None
) -> guide.Guide | None:
  """Loads the network that guides these samples; None if none does. Raises: as guide.load."""
  return guide.load(experiment, workdir, scaling) if is_autoguided(experiment) else None


def identity_of(step: int, sums: Iterable[int]) -> dict[str, Any]:
  """Returns what tells the weights of a network. sums: the checksums of its parameters, in any order."""
  return {'step': step, 'parameters': f'{sum(sums) % 2**32:08x}'}


def settings(experiment: Experiment) -> dict[str, Any] | None:
  """Returns what config.sample.guidance changes, as JSON gives it; None for nothing.

  Sets older than these options have no entry either. Which network guides is told by its parameters.
  """
  changed = _changed(experiment)
  changed |= {'guide': True} if is_autoguided(experiment) else {}
  return json.loads(json.dumps(changed)) or None


def suffix(experiment: Experiment) -> str:
  """Returns what guidance adds to the name of a set, as in '-interval0.3_5-guide_small_500'."""
  made, guidance = '', experiment.config.sample.guidance
  for name, value in _changed(experiment).items():
    values = value if isinstance(value, tuple) else (value,)
    made += f'-{name}' + '_'.join(f'{x:g}' for x in values)
  if is_autoguided(experiment):
    made += '_'.join(filter(None, ['-guide', Path(guidance.workdir).name, guidance.checkpoint]))
  return made


def _changed(experiment: Experiment) -> dict[str, Any]:
  """The options that differ from the defaults."""
  given = dataclasses.asdict(GuidanceOptions(**experiment.config.sample.guidance.options))
  plain = dataclasses.asdict(GuidanceOptions())
  return {name: value for name, value in given.items() if value != plain[name]}
