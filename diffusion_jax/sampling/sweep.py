"""The cells of --mode=sweep: every combination of the swept values, each with a sample set of its own.

A cell's set is the one that --mode=sample makes with the same flags. Where a swept field is no part of the
set's default name, the name gets it: ddim50-cfg1-eta0.5.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.config import sweep
from diffusion_jax.config.fields import Leaf, Section, schema, walk
from diffusion_jax.config.options import BY_COMMAND, IF_GIVEN, SETTING
from diffusion_jax.config.schema import Config
from diffusion_jax.config.sweep import Axis, Flags
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.checks import check_data, check_devices, with_settings
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.weights import chosen_step, open_checkpoints
from diffusion_jax.sampling import samples
from diffusion_jax.sampling.measured import with_num_samples
from diffusion_jax.types import Sampler
from diffusion_jax.usage import nearest_fields

NAME = 'sample.name'  # Names the sets, which cells must not share.
WEIGHTS = ('init_from', 'vae.checkpoint')  # Weights of another run are no setting of this one.
# Sections and fields on which neither samples nor their metrics depend, once a preset was applied.
WITHOUT_EFFECT = (
  *('data', 'objective', 'published', 'report', 'bench', 'logging', 'allow_pickle'),
  *('sample.preset', 'sample.invert'),
)
# Sections and a field that change how fast samples are made, and nothing else that a set keeps.
SPEED = ('model', 'mesh', 'sample.batch_size')


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """One combination. values: swept field -> value; experiment: with these, and a name of its own."""

  values: Mapping[str, Any]
  experiment: Experiment

  @property
  def label(self) -> str:
    """'sampler.name=ddim, sample.num_steps=10'"""
    return ', '.join(f'{field}={sweep.shown(value)}' for field, value in self.values.items())

  @functools.cached_property
  def evaluations(self) -> float:
    """Passes of the network for one sample."""
    return self.experiment.generator().evaluations()

  @property
  def cost(self) -> float:
    """Evaluations of the network for all samples of all seeds."""
    config = self.experiment.config
    return self.evaluations * config.sample.num_samples * config.eval.num_seeds


class Known(NamedTuple):
  """What cells share: asked checkpoint -> step, and samplers by their options."""

  steps: dict[str, str]
  samplers: dict[str, Sampler]


def read_axes(flags: Flags, mapping: Mapping[str, Any], problems: list[str]) -> list[Axis]:
  """Reads what is swept; notes every field that a trained run may not change and every unreadable value."""
  found = {
    path.removeprefix('config.'): item
    for path, item in walk(schema(Config, mapping))
    if path != f'config.{NAME}'
  }
  allowed = {
    path: item
    for path, item in found.items()
    if _may_change(item) and not {path, path.split('.')[0]} & {*WEIGHTS, *WITHOUT_EFFECT}
  }
  axes: dict[str, Axis] = {}
  if '/' in flags.name or flags.name.startswith('.'):
    problems.append(f"--sweep_name: got {flags.name!r}, allowed a file name or ''")
  if not flags.fields:
    problems.append('--sweep is missing; for example --sweep=sample.num_steps=10,50')
  for text in flags.fields:
    field, is_there, values = text.partition('=')
    if field not in allowed or not is_there:
      problems.append(_no_field(text, field, found, allowed))
    elif field in axes:
      problems.append(f'--sweep={field}: given twice; allowed once, with all values')
    elif field in flags.given:
      problems.append(f'--sweep={field}: --config.{field} is given too, allowed one of the two')
    else:
      axes[field] = Axis(field, _values(field, values, allowed[field], problems))
  return [axis for axis in axes.values() if axis.values]


def _may_change(item: Leaf | Section) -> bool:
  return isinstance(item, Leaf) and item.change in (SETTING, BY_COMMAND, IF_GIVEN)


def _no_field(
  text: str, field: str, found: Mapping[str, Leaf | Section], allowed: Mapping[str, Leaf]
) -> str:
  if field in allowed:
    return f'--sweep={text}: no values; allowed --sweep={field}=V1,V2,...'
  within = [path for path in allowed if path.startswith(f'{field}.')]
  if field == NAME:
    why, near = 'every cell has a set of its own; --sweep_name names the sweep', []
  elif within:
    why, near = f'a section; sweep its fields: {", ".join(within)}', []
  else:
    why = 'no such field'
    if field in found:
      is_idle = _may_change(found[field]) and field not in WEIGHTS
      why = 'samples do not depend on it' if is_idle else 'a trained run cannot change it'
    near = nearest_fields(field.removeprefix('config.'), allowed)
  hint = f' (nearest {", ".join(map(repr, near))})' if near else ''
  return f'--sweep={field}: {why}{hint}'


def _values(field: str, text: str, leaf: Leaf, problems: list[str]) -> tuple[Any, ...]:
  """The values of a field, each once, without those that its type or its check does not allow."""
  try:
    parts = sweep.split(text)
  except ValueError as error:
    problems.append(f'--sweep={field}: got {text!r}, allowed {error}')
    return ()
  values: dict[str, Any] = {}
  for part in parts:
    try:
      values[part] = sweep.read_value(part, leaf)
    except ValueError as error:
      problems.append(f'--sweep={field}: got {part!r}, allowed {error}')
  return tuple({repr(value): value for value in values.values()}.values())


def cells_of(
  experiment: Experiment, workdir: Path, axes: Sequence[Axis], problems: list[str]
) -> list[Cell]:
  """Makes the cells of the grid, the last field fastest; notes every problem with the cells that have it.

  Called by every process. Checks all that is known before a network is built, existing sets too.
  """
  made: list[Cell] = []
  wrong: dict[str, list[str]] = {}
  known = Known({}, {})
  for combination in itertools.product(*(axis.values for axis in axes)):
    values = dict(zip((axis.field for axis in axes), combination))
    cell = Cell(values, experiment)
    try:
      cell = dataclasses.replace(cell, experiment=_resolved(experiment, workdir, values, known))
      made.append(cell)
    except InputError as error:
      for problem in error.problems or (str(error),):
        wrong.setdefault(problem, []).append(cell.label)
  problems += [*of_cells(wrong), *_shared_names(made)]
  return made


def of_cells(wrong: Mapping[str, Sequence[str]]) -> list[str]:
  """Problems with the cells that have them. wrong: problem -> labels of cells."""
  return [
    f'cell {labels[0]}{f" and {len(labels) - 1} more" if len(labels) > 1 else ""}: {problem}'
    for problem, labels in wrong.items()
  ]


def _resolved(
  experiment: Experiment, workdir: Path, values: Mapping[str, Any], known: Known
) -> Experiment:
  """The experiment of a cell: named, of one step, checked. Raises: InputError."""
  found = with_settings(experiment, values)
  check_devices(found)
  check_data(found)
  # Compiled programs are shared by what is the same object.
  sampler = known.samplers.setdefault(repr(found.config.sampler), found.sampler)
  vars(found)['sampler'] = sampler
  asked = found.config.sample.checkpoint
  if asked not in known.steps:
    known.steps[asked] = _step(found, workdir)
  name = f'{samples.set_name(found)}{_suffix(experiment, found, values)}'
  found = with_settings(found, {NAME: name, 'sample.checkpoint': known.steps[asked]})
  found = with_num_samples(found)
  samples.find(found, workdir)  # Refuses a set of other settings.
  return found


def _step(experiment: Experiment, workdir: Path) -> str:
  """config.sample.checkpoint as a number, which more training does not change; 'latest' before any."""
  asked = experiment.config.sample.checkpoint
  if asked.isdigit() or not stored.has_checkpoint(workdir):
    return asked
  checkpoints = open_checkpoints(experiment, workdir, read_only=True)
  try:
    return str(chosen_step(experiment, checkpoints))
  finally:
    checkpoints.close()


def _suffix(base: Experiment, found: Experiment, values: Mapping[str, Any]) -> str:
  """What tells a cell's set from others of its name: fields that it depends on, unlike the base's."""
  parts = []
  for field, value in values.items():
    before = stored.value_at(base.mapping, field)
    if before != value:
      other = _or_none(lambda field=field, before=before: with_settings(found, {field: before}))
      differs = other is None or samples.settings(other) != samples.settings(found)
      differs = differs or field in SPEED or field.split('.')[0] in SPEED
      if differs and (other is None or samples.set_name(other) == samples.set_name(found)):
        parts.append(f'-{sweep.in_name(field, value)}')
  return ''.join(parts)


def _or_none(build: Callable[[], Experiment]) -> Experiment | None:
  try:
    return build()
  except InputError:
    return None


def _shared_names(cells: Sequence[Cell]) -> list[str]:
  """Problems of cells whose sets have one name and different settings."""
  first: dict[str, Cell] = {}
  problems = []
  for cell in cells:
    other = first.setdefault(samples.set_name(cell.experiment), cell)
    if samples.settings(other.experiment) != samples.settings(cell.experiment):
      name = samples.set_name(cell.experiment)
      problems.append(f'cell {cell.label}: its set would be {name}, as that of cell {other.label}')
  return problems
