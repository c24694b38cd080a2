"""The guiding network of autoguidance (Karras et al. 2024, arXiv:2406.02507): other weights for these images.

They are those of another run, config.sample.guidance.workdir, or of an earlier checkpoint of the same run.
"""

import dataclasses
from collections.abc import Callable, Hashable
from pathlib import Path

import jax
import numpy as np

from diffusion_jax.config.fields import updated
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.weights import load_checkpoint
from diffusion_jax.models.latents import Scaling
from diffusion_jax.runtime import hosts
from diffusion_jax.types import Network, PyTree

FIELD = 'config.sample.guidance'


@dataclasses.dataclass(frozen=True, eq=False)
class Guide:
  """network: parts -> the guiding network. parts: on the devices. key: two of a key share programs."""

  network: Callable[[PyTree], Network]
  parts: PyTree
  step: int
  key: Hashable


def folder_of(experiment: Experiment, workdir: Path | None) -> Path:
  """Returns the work directory of the guide. Raises: InputError if there is none."""
  given = experiment.config.sample.guidance
  folder = Path(given.workdir).expanduser().absolute() if given.workdir else workdir
  if folder is None:
    raise InputError(f'{FIELD}.checkpoint: got {given.checkpoint!r}, but this run has no workdir')
  return folder


def opened(experiment: Experiment, workdir: Path | None) -> tuple[Experiment, Path]:
  """The guide's run on this run's devices, and its folder; reads no parameters.

  Raises: InputError unless it was trained for the same x0, process and classes.
  """
  folder, here = folder_of(experiment, workdir), experiment.mapping
  chosen = experiment.config.sample.guidance.checkpoint or 'latest'
  try:
    mapping = stored.with_own_autoencoder(folder, stored.load(folder))
    average = mapping['sample']['average'] if folder != workdir else here['sample']['average']
    changes = {'average': average, 'checkpoint': chosen, 'cfg_scale': 1.0, 'guidance': {}}
    sample = {**here['sample'], **changes, 'labels': (), 'label_counts': ()}
    mapping = {**mapping, **{name: here[name] for name in ('mesh', 'dtype')}, 'sample': sample}
    there = create(updated(Config, mapping, {}))
  except InputError as error:
    raise InputError(f'{FIELD}.workdir: {folder} cannot guide: {error}') from error
  _require_alike(folder, experiment, there)
  return there, folder


def load(experiment: Experiment, workdir: Path | None, scaling: Scaling | None = None) -> Guide:
  """Loads the guide. scaling: that of this run's latents. Raises: as opened; InputError, DamagedError."""
  there, folder = opened(experiment, workdir)
  try:
    restored = load_checkpoint(there, folder)
  except InputError as error:
    raise InputError(f'{FIELD}.checkpoint: {folder} cannot guide: {error}') from error
  own, others = jax.device_get((scaling, restored.state.scaling))
  if not all(map(np.allclose, jax.tree.leaves(own), jax.tree.leaves(others))):
    raise InputError(f'{FIELD}.workdir: {folder} was trained on latents of another scale: {others}')
  parts = restored.state.only(there.objective.network_parts).parts
  hosts.say(f'guided by step {restored.step} of {folder}')
  return Guide(there.objective.network, parts, restored.step, repr(there.module))


def _require_alike(folder: Path, experiment: Experiment, there: Experiment) -> None:
  here, trained = experiment.config, there.config
  pairs = {
    'objective.name': ('a diffusion model', 'a diffusion model' if there.objective.network else ''),
    'space': (here.space, trained.space),
    'x0': (experiment.x0_shape, there.x0_shape),
    'num_classes': (here.num_classes, trained.num_classes),
    'schedule': (here.schedule, trained.schedule),
    'process': (here.process, trained.process),
    'vae.fingerprint': (here.vae.fingerprint, trained.vae.fingerprint),
  }
  differing = [f'{name}: {b}, here {a}' for name, (a, b) in pairs.items() if a != b]
  if differing:
    raise InputError(
      f'{FIELD}.workdir: {folder} cannot guide, it was trained for something else:\n  '
      + '\n  '.join(differing)
    )
