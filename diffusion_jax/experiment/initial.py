"""Loads the weights of config.init_from and checks that they fit the model of the config."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.config.options import fixed_options
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import first_stage, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.latents import Scaling
from diffusion_jax.pretrained import diffusers, dit, weights
from diffusion_jax.runtime.mesh import replicated
from diffusion_jax.types import PyTree

ADVICE = (
  'a published DiT (.pt or .safetensors), a diffusers DiTTransformer2DModel directory, or a work '
  'directory that trained a diffusion model'
)
PUBLISHED_SCALE = 0.18215  # Scale of the latents of the published DiTs.
LABELS = ('condition', 'label', 'embedding')


@dataclasses.dataclass(frozen=True, eq=False)
class Initial:
  """Weights to begin with.

  params: float32 NumPy, shaped as the model's; for other classes, only the last rows of the label table.
  scaling: that of the latents that they were trained on, NumPy, where config.vae.scale leaves it open.
  notes: remarks for the user.
  """

  origin: str
  params: PyTree
  scaling: Scaling | None
  notes: tuple[str, ...]

  def on_devices(self, abstract: PyTree) -> PyTree:
    """Places params as global arrays, sharded as `abstract`, the model's ShapeDtypeStructs."""

    def place(wanted, values):
      fits = values.shape == wanted.shape
      sharding = wanted.sharding if fits else replicated(wanted.sharding.mesh)
      return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(place, abstract, self.params)

  def require_labels(self, abstract: PyTree) -> None:
    """Raises InputError if rows of the label table would have to be trained first."""
    own, given = (flatten_dict(tree).get(LABELS) for tree in (abstract, self.params))
    if own is not None and own.shape != given.shape:
      raise InputError(f'config.init_from: {"; ".join(self.notes)}; train them before sampling')


def load(experiment: Experiment) -> Initial | None:
  """Loads the weights of config.init_from; returns None if that is empty.

  Raises: InputError if there are none, or they belong to another model; DamagedError.
  """
  config = experiment.config
  if not config.init_from:
    return None
  if not experiment.objective.network:
    raise InputError(
      f"config.init_from: got {config.init_from!r}, allowed '' with config.objective.name "
      f'{config.objective.name!r}'
    )
  path = Path(config.init_from).expanduser().absolute()
  if not path.exists():
    raise InputError(f'config.init_from: {path}: no such file or directory; give {ADVICE}')
  if (path / stored.FILE).is_file() and 'objective' in weights.read_json(path / stored.FILE):
    return _from_workdir(path, experiment)
  return _published(path, experiment)


def _published(path: Path, experiment: Experiment) -> Initial:
  """Loads a file of the authors or a directory of diffusers."""
  try:
    module, params = _read_published(path, experiment)
  except ValueError as error:  # Arrays of one file that do not even fit each other.
    raise InputError(f'config.init_from: {path}: {error}') from error
  # A file of the authors does not give the number of heads: _read_published takes the config's.
  _require_same_module(path, module, experiment, free=set() if path.is_dir() else {'num_heads'})
  params, notes = _fitted(path, params, experiment)
  config = experiment.config
  if config.process.prediction_type != 'eps' or config.schedule.name != 'linear':
    notes.append(
      'the published DiTs were trained with config.process.prediction_type eps and config.schedule.name '
      f'linear, here: {config.process.prediction_type} and {config.schedule.name}'
    )
  if experiment.is_latent and (not config.vae.scale or config.vae.shift != 'none'):
    notes.append(
      'the published DiTs were trained on latents of --config.vae.scale='
      f'{PUBLISHED_SCALE} and --config.vae.shift=none, here: {config.vae.scale or "measured"} and '
      f'{config.vae.shift}'
    )
  return Initial(str(path), params, None, tuple(notes))


def _read_published(path: Path, experiment: Experiment) -> tuple[nn.Module, PyTree]:
  config = experiment.config
  if path.is_dir():
    if not any((path / name).is_file() for name in ('config.json', 'model_index.json')):
      raise InputError(f'config.init_from: {path}: no config.json in it; give {ADVICE}')
    module, params = diffusers.load(path, allow_pickle=config.allow_pickle)
    if not isinstance(module, DiT):
      raise InputError(f'config.init_from: {path}: a {type(module).__name__}; give {ADVICE}')
    return module, params
  state = weights.read_state(path, allow_pickle=config.allow_pickle)
  table = state.get('y_embedder.embedding_table.weight')
  if table is not None and len(table) == config.num_classes:
    raise InputError(
      f'config.init_from: {path}: y_embedder.embedding_table.weight has {len(table):,} rows, allowed '
      f'{config.num_classes + 1:,} with config.num_classes {config.num_classes:,}: the last one is for '
      '"no class", which this file seems to lack'
    )
  width = len(state.get('x_embedder.proj.bias', ()))
  heads = config.model.options.get('num_heads', 1)
  # If the heads do not divide the width, the widths differ, and that is reported.
  return dit.from_state(state, str(path), num_heads=heads if width % heads == 0 else 1)


def _from_workdir(folder: Path, experiment: Experiment) -> Initial:
  """Loads the averaged parameters of the newest good checkpoint."""
  try:
    there = create(stored.load(folder))
  except InputError as error:
    raise InputError(
      f'config.init_from: {folder}: its config.json does not fit this version: {error}'
    ) from error
  if not there.objective.network:
    raise InputError(
      f'config.init_from: {folder}: trained with config.objective.name {there.config.objective.name!r}; give '
      f'{ADVICE}'
    )
  _require_same_process(folder, there, experiment)
  _require_same_module(folder, there.module, experiment)
  model = jax.eval_shape(there.objective.init)['model']
  abstract = {'averages': {'ema': {'model': model}}}
  if there.is_latent:
    abstract['scaling'] = there.abstract_scaling
  found = first_stage.newest_fields(folder, abstract)
  names = (stored.load_meta(folder, there.config.data.fingerprint) or {}).get('label_names')
  params, notes = _fitted(folder, found['averages']['ema']['model'], experiment, names)
  here, config = experiment.config.schedule, there.config
  if here != config.schedule:
    notes.append(
      f'config.schedule: {here.name} {dict(here.options)}, there {config.schedule.name} '
      f'{dict(config.schedule.options)}'
    )
  scaling = found.get('scaling')
  if scaling is not None:
    scale, given = float(scaling.scale), experiment.config.vae.scale
    if given:
      notes.append(f'latents: scale {given:.5f} of config.vae.scale, there {scale:.5f}')
      scaling = scaling._replace(scale=np.float32(given))
    else:
      notes.append(f'latents: scale {scale:.5f} and shift {scaling.shift.tolist()} as there')
  return Initial(str(folder), params, scaling, tuple(notes))


def _require_same_process(folder: Path, there: Experiment, experiment: Experiment) -> None:
  """Raises InputError if space, prediction type or latents of the weights differ."""
  here, trained = experiment.config, there.config
  pairs = {
    'space': (here.space, trained.space),
    'process.prediction_type': (here.process.prediction_type, trained.process.prediction_type),
  }
  problems = [f'config.{k}: got {a!r}, trained with {b!r}' for k, (a, b) in pairs.items() if a != b]
  if not problems and experiment.is_latent:
    found = experiment.first_stage.fingerprint
    if found != trained.vae.fingerprint:
      problems.append(
        f'config.vae.checkpoint: the autoencoder {found}, trained with {trained.vae.fingerprint}, whose '
        f'latents mean something else; it is in {folder / stored.AUTOENCODER}'
      )
    if here.vae.shift != trained.vae.shift:
      problems.append(
        f'config.vae.shift: got {here.vae.shift!r}, trained with {trained.vae.shift!r}'
      )
  _refuse(folder, problems)


def _require_same_module(
  path: Path, found: nn.Module, experiment: Experiment, free: set[str] = frozenset()
) -> None:
  """Raises an InputError that lists every field in which the modules differ."""
  wanted, model = experiment.module, experiment.config.model
  if type(found) is not type(wanted):
    kind = type(found).__name__
    _refuse(path, [f'config.model.name: got {model.name!r}, the weights are those of a {kind}'])
  problems = []
  for name in (*fixed_options(type(wanted)), 'out_channels'):
    got, has = getattr(wanted, name), getattr(found, name)
    if name in free or got == has:
      continue
    if name == 'out_channels':
      problems.append(_of_outputs(got, has, experiment))
      continue
    hint = ' (1 in files of diffusers, 0 in those of the authors)'
    hint = hint if name == 'frequency_shift' else ''
    problems.append(f'{model.section}.{name}: got {got}, the file has {has}{hint}')
  _refuse(path, problems)


def _of_outputs(got: int, has: int, experiment: Experiment) -> str:
  """Explains why the network has another number of output channels."""
  learned = experiment.config.process.learned_variance
  channels = experiment.x0_shape[-1]
  outputs = f'{got} output channels for {channels} of x0, the file has {has}'
  if has in (2 * got, got / 2):
    return f'config.process.learned_variance: got {learned}, so {outputs}'
  field = 'config.vae.embed_channels' if experiment.is_latent else 'config.data.channels'
  return f'{field}: got {channels} (config.process.learned_variance {learned}), so {outputs}'


def _refuse(path: Path, problems: list[str]) -> None:
  """Raises an InputError that lists the problems, if there are any."""
  if problems:
    listed = '\n'.join(f'  {problem}' for problem in problems)
    raise InputError(
      f'config.init_from: {path}: the weights belong to another model than this config:\n{listed}'
    )


def _fitted(
  path: Path, params: PyTree, experiment: Experiment, label_names: Sequence[str] | None = None
) -> tuple[PyTree, list[str]]:
  """Returns the params as Initial keeps them, and notes. Raises: InputError for other shapes."""
  wanted = flatten_dict(jax.eval_shape(experiment.objective.init)['model'])
  flat = {name: np.asarray(values, np.float32) for name, values in flatten_dict(params).items()}
  own, table = wanted.pop(LABELS, None), flat.pop(LABELS, None)
  problems = []
  for name in sorted({*wanted, *flat}):
    shapes = [tree[name].shape if name in tree else 'nothing' for tree in (wanted, flat)]
    if shapes[0] != shapes[1]:
      problems.append(f'{"/".join(name)}: {shapes[0]} here, the file has {shapes[1]}')
  if own is not None and table is not None and own.shape[1:] != table.shape[1:]:
    problems.append(f'{"/".join(LABELS)}: {own.shape} here, the file has {table.shape}')
  _refuse(path, problems)
  if own is None:
    notes = ['label table: none here, that of the weights is left out'] if table is not None else []
    return unflatten_dict(flat), notes
  same = True
  if label_names and experiment.datasets.is_prepared():  # Otherwise their names are unknown here.
    same = list(label_names) == list(experiment.label_names)
  flat[LABELS], notes = _label_rows(own.shape, table, same)
  return unflatten_dict(flat), notes


def _label_rows(
  shape: tuple[int, int], table: np.ndarray | None, same_classes: bool
) -> tuple[np.ndarray, list[str]]:
  """Returns the last rows of the label table that the weights provide (all, one or none)."""
  here = f'label table: {shape[0] - 1:,} classes here'
  if table is None:
    return np.zeros((0, shape[1]), np.float32), [f'{here}, none there: all rows initialised anew']
  if table.shape == shape and same_classes:
    return table, []
  there = f'{len(table) - 1:,}{" others" if table.shape == shape else ""} there'
  return table[-1:], [f"{here}, {there}: rows initialised anew, the null label's kept"]


def require_scaling(experiment: Experiment) -> None:
  """Raises InputError if the scale of the latents has to be measured and no data are prepared."""
  try:
    _ = experiment.scaling
  except InputError as error:
    vae = experiment.config.vae
    raise InputError(
      f'config.vae.scale, config.vae.shift: got {vae.scale:g}, {vae.shift!r}, which are measured on '
      f'latents; without latents give the values of training (published DiTs: '
      f"{PUBLISHED_SCALE}, 'none'), or prepare data first: {error}"
    ) from error
