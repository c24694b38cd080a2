"""Loads the weights that sampling uses: those of a checkpoint, or of config.init_from."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from pathlib import Path

from flax.traverse_util import unflatten_dict

from diffusion_jax.errors import InputError
from diffusion_jax.experiment import initial, stored
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.runtime import files, hosts, mesh
from diffusion_jax.runtime.checkpoint import Checkpoints, Restored
from diffusion_jax.runtime.patience import alive
from diffusion_jax.training.state import Weights
from diffusion_jax.types import PyTree


def open_checkpoints(experiment: Experiment, workdir: Path, read_only: bool = False) -> Checkpoints:
  """Opens the checkpoints of `workdir` under config.checkpoint.

  Where they will be written, removes what killed commands left unfinished.
  """
  c = experiment.config.checkpoint
  if not read_only and hosts.is_first():
    for folder in (workdir, workdir / 'previews'):
      files.remove_leftovers(folder)
  return Checkpoints(
    workdir / 'checkpoints',
    keep_newest=c.keep_newest,
    keep_best=c.keep_best,
    best_metric=experiment.best_metric,
    best_mode=c.best_mode,
    read_only=read_only,
  )


def chosen_step(experiment: Experiment, checkpoints: Checkpoints) -> int:
  """Returns the step that config.sample.checkpoint names. Raises: InputError if it does not exist."""
  wanted = experiment.config.sample.checkpoint
  best = checkpoints.best_step() if wanted == 'best' else None
  steps = checkpoints.steps()
  step = int(wanted) if wanted.isdigit() else max(steps, default=None)
  if wanted == 'best':
    step = best
  if step not in steps:
    raise InputError(
      f'config.sample.checkpoint: got {wanted!r}, {checkpoints.directory} has {steps}'
    )
  return step


def load_checkpoint(experiment: Experiment, workdir: Path) -> Restored:
  """Loads the Weights of the checkpoint that config.sample.checkpoint names.

  Before any training, loads the weights of config.init_from as step 0.
  Raises: InputError if the checkpoint does not exist; as initial.load.
  """
  sample = experiment.config.sample
  if experiment.config.init_from and not stored.has_checkpoint(workdir):
    return initial_weights(experiment)
  checkpoints = open_checkpoints(experiment, workdir, read_only=True)
  try:
    step = chosen_step(experiment, checkpoints)
    paths, abstract = paths_of(experiment), experiment.abstract_state
    wanted = unflatten_dict({path: reach(vars(abstract), path) for path in paths.values()})
    wanted |= {'scaling': abstract.scaling} if experiment.is_latent else {}
    # If the newest one is damaged, the one before it is used.
    newest = sample.checkpoint == 'latest'
    with alive(f'restoring the checkpoint of step {step}'):
      restored = checkpoints.restore(wanted, None if newest else step, partial=True)
    steps = hosts.gather(restored.step)
    if len(set(steps)) > 1:
      raise InputError(
        f'{checkpoints.directory}: processes restored steps {steps}, while a training was writing there; '
        'run this command again, or name a step: --config.sample.checkpoint'
      )
  finally:
    checkpoints.close()
  for damaged, reason in restored.damaged.items():
    hosts.say(f'checkpoint of step {damaged} is damaged ({reason}); using step {restored.step}')
  parts = {part: reach(restored.state, path) for part, path in paths.items()}
  weights = Weights(parts, restored.state.get('scaling'))
  return dataclasses.replace(restored, state=weights)


def reach(tree: Mapping, path: tuple[str, ...]) -> PyTree:
  """Returns the subtree at a path of keys."""
  return functools.reduce(operator.getitem, path, tree)


def paths_of(experiment: Experiment) -> dict[str, tuple[str, ...]]:
  """Returns where a checkpoint has the parts that sampling needs, under config.sample.average."""
  objective, average = experiment.objective, experiment.config.sample.average
  return {
    part: ('averages', average, part)
    if average and part in objective.averaged
    else ('params', part)
    for part in objective.network_parts
  }


def initial_weights(experiment: Experiment) -> Restored:
  """Loads the weights of config.init_from onto the devices, in the form of load_checkpoint.

  Raises: as initial.load; InputError without a scale of the latents, or if another checkpoint is named.
  """
  sample = experiment.config.sample
  if sample.checkpoint not in ('latest', '0'):
    raise InputError(
      f"config.sample.checkpoint: got {sample.checkpoint!r}, allowed 'latest' or '0', the weights of "
      'config.init_from: nothing was trained here'
    )
  with alive(f'reading {experiment.config.init_from}'):
    given, wanted = initial.load(experiment), experiment.abstract_state.params['model']
  given.require_labels(wanted)
  if given.scaling is None:
    initial.require_scaling(experiment)
  hosts.say('\n  '.join([f'weights of {given.origin}', *given.notes]))
  scaling = given.scaling or experiment.scaling
  if experiment.is_latent:
    scaling = mesh.to_devices(scaling, mesh.replicated(experiment.mesh))
  return Restored(Weights({'model': given.on_devices(wanted)}, scaling), 0, {})
