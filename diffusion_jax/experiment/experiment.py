"""A config, checked, and the parts built from it. Nothing outside this package knows its shape."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import packed
from diffusion_jax.data.plan import Recipe
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.losses import DenoisingLoss
from diffusion_jax.diffusion.process import Process
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import FeatureNetwork, Metric
from diffusion_jax.experiment.autoencoder import make_autoencoder_trainer
from diffusion_jax.experiment.fields import read
from diffusion_jax.experiment.sections import Config
from diffusion_jax.randomness import purpose_key
from diffusion_jax.runtime.mesh import make_mesh, state_shardings
from diffusion_jax.training import resident
from diffusion_jax.training.autoencoder import AutoencoderTrainer
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import create_state
from diffusion_jax.training.step import Trainer
from diffusion_jax.types import Array, DataSource, NoiseSchedule, PyTree, Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """config: the checked sections. mapping: what they were read from, plain and JSON-ready.

  stored_meta: the description of the data that a work directory keeps, where there is one.
  """

  config: Config
  mapping: Mapping[str, Any]
  stored_meta: Mapping[str, Any] | None = None

  @functools.cached_property
  def schedule(self) -> NoiseSchedule:
    return self.config.schedule.build()

  @functools.cached_property
  def process(self) -> Process:
    return Process(self.schedule, **dataclasses.asdict(self.config.process))

  @functools.cached_property
  def sampler(self) -> Sampler:
    return self.config.sampler.build(schedule=self.schedule)

  @property
  def recipe(self) -> Recipe:
    """What the prepared set must be."""
    data = self.config.data
    return Recipe(**{field.name: getattr(data, field.name) for field in dataclasses.fields(Recipe)})

  @property
  def data_dir(self) -> Path:
    return Path(self.config.data.dir).expanduser().absolute()

  def is_prepared(self) -> bool:
    """Whether the prepared set is there."""
    fingerprint = self.config.data.fingerprint
    return bool(packed.matching(self.data_dir, self.recipe.mapping(), fingerprint))

  @functools.cached_property
  def prepared(self) -> tuple[Path, Mapping[str, Any]]:
    """The folder of the prepared set and its description; nothing is read or verified yet.

    Raises: InputError if there is none.
    """
    return packed.find(self.data_dir, self.recipe.mapping(), self.config.data.fingerprint)

  @property
  def meta(self) -> Mapping[str, Any]:
    """The description of the data, from the work directory or from the prepared set."""
    return self.stored_meta or self.prepared[1]

  @property
  def label_names(self) -> Sequence[str]:
    return self.meta['label_names']

  @functools.cached_property
  def _verified(self) -> tuple[Path, Mapping[str, Any]]:
    folder, meta = self.prepared
    packed.verify(folder, meta, full=self.config.data.verify == 'full')
    return folder, meta

  @functools.cached_property
  def train_data(self) -> DataSource:
    """Raises: InputError if it is not prepared, DamagedError if it is not what was written."""
    return packed.open_split(*self._verified, 'train')

  @functools.cached_property
  def holdout_data(self) -> DataSource:
    """Raises: as train_data; InputError if nothing is held out."""
    if not self.meta['num_holdout']:
      raise InputError(
        f'{self.prepared[0]}: no held-out images, which the held-out loss and evaluation need: '
        'prepare again with --config.data.holdout=NUMBER'
      )
    return packed.open_split(*self._verified, 'holdout')

  def open_data(self) -> None:
    """Verifies both splits now, before anything else. Raises: as holdout_data."""
    _ = self.train_data, self.holdout_data

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of what the backbone sees."""
    data = self.config.data
    return data.image_size, data.image_size, data.channels

  @functools.cached_property
  def dtype(self) -> jnp.dtype:
    """Of activations: 'auto' is bfloat16 on accelerators and float32 on CPU."""
    if self.config.dtype == 'auto':
      return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    return jnp.dtype(self.config.dtype).type

  @functools.cached_property
  def module(self) -> nn.Module:
    outputs = 2 if self.config.process.learned_variance else 1
    return self.config.model.build(
      out_channels=outputs * self.image_shape[-1],
      num_classes=self.config.num_classes,
      dtype=self.dtype,
    )

  @functools.cached_property
  def trainer(self) -> Trainer:
    config = self.config
    loss = DenoisingLoss(
      self.process,
      null_label=config.num_classes,
      label_drop=config.loss.label_drop if config.num_classes else 0.0,
      weighting=config.loss.weighting,
      min_snr_gamma=config.loss.min_snr_gamma,
      vlb_weight=config.loss.vlb_weight,
    )
    optimizer = make_optimizer(
      **dataclasses.asdict(config.optimizer), total_steps=config.train.num_steps
    )
    return Trainer(
      self.module, loss, optimizer, config.train.ema_decay, config.data.flip, config.seed
    )

  @functools.cached_property
  def autoencoder_trainer(self) -> AutoencoderTrainer:
    """Raises: InputError for sizes that do not fit each other."""
    return make_autoencoder_trainer(self.config, self.dtype)

  @functools.cached_property
  def resident_data(self) -> dict[str, Array]:
    """All training examples on the devices if config asks for it, else nothing."""
    if not self.config.data.device_resident:
      return {}
    return resident.load(self.train_data, self.mesh)

  def init_params(self) -> PyTree:
    """Parameters at step 0, a function of the seed."""
    x = jnp.zeros((1, *self.image_shape), jnp.float32)
    key = purpose_key(self.config.seed, 'init')
    return self.module.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))['params']

  def init_state(self) -> PyTree:
    """The state of config.task at step 0."""
    if self.config.task == 'autoencoder':
      return self.autoencoder_trainer.create_state(self.image_shape)
    return create_state(self.init_params(), self.trainer.optimizer)

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """Raises: InputError if the devices do not fit config.mesh."""
    sizes = self.config.mesh
    try:
      return make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
    except ValueError as error:
      raise InputError(f'config.mesh (data, fsdp, tensor): {error}') from error

  @functools.cached_property
  def abstract_state(self) -> PyTree:
    """Shapes, dtypes and shardings of the state.

    Raises: InputError if the model does not fit the images, or the sharding rules the state.
    """
    try:
      state = jax.eval_shape(self.init_state)
    except ValueError as error:
      diffuses = self.config.task == 'diffusion'
      path = f'config.model.{self.config.model.name}' if diffuses else 'config.vae'
      raise InputError(f'{path}.{error}') from error
    try:
      shardings = state_shardings(state, self.mesh, self.config.mesh.rules)
    except ValueError as error:
      raise InputError(f'config.mesh.{error}') from error
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )

  def generator(self, num_frames: int = 0, frame_examples: int = 0) -> Generator:
    """The sampling process of config.sample, with animation frames of the first examples."""
    sample = self.config.sample
    return Generator(
      self.process,
      self.sampler,
      self.schedule.grid(sample.num_steps, sample.spacing),
      self.image_shape,
      seed=sample.seed,
      null_label=self.config.num_classes,
      cfg_scale=sample.cfg_scale,
      clip_x0=sample.clip_x0,
      num_frames=min(num_frames, sample.num_steps + 1),
      frame_examples=frame_examples,
    )

  def sample_labels(self, indices: np.ndarray) -> np.ndarray:
    """The label of every sample number, int32: the user's in turn, or i mod num_classes."""
    chosen = np.asarray(self.config.sample.labels or range(max(self.config.num_classes, 1)))
    return chosen[np.asarray(indices) % len(chosen)].astype(np.int32)

  def features(self) -> FeatureNetwork:
    """The feature network of config.eval, trained or loaded if it needs that."""
    return self.config.eval.features.build(
      train=self.train_data, holdout=self.holdout_data, cache_dir=self.data_dir
    )

  def metrics(self) -> list[Metric]:
    """The metrics of config.eval."""
    return [choice.build() for choice in self.config.eval.metrics]


def create(mapping: Mapping[str, Any], stored_meta: Mapping[str, Any] | None = None) -> Experiment:
  """Reads and checks everything that the config alone decides.

  Raises: InputError that lists every problem found.
  """
  from diffusion_jax.experiment import checks

  problems: list[str] = []
  config = read(Config, mapping, 'config', problems)
  if config is None:
    raise InputError(listed(problems))
  experiment = Experiment(config, mapping, stored_meta)
  _raise(checks.config_problems(experiment))
  return experiment


def check_devices(experiment: Experiment) -> None:
  """Checks what depends on the devices, before anything is compiled.

  Raises: InputError that lists every problem found.
  """
  from diffusion_jax.experiment import checks

  _raise(checks.device_problems(experiment))


def check_data(experiment: Experiment) -> None:
  """Checks what depends on the description of the data, before they are read.

  Raises: InputError that lists every problem found.
  """
  from diffusion_jax.experiment import checks

  _raise(checks.data_problems(experiment))


def _raise(problems: list[str]) -> None:
  if problems:
    raise InputError(listed(problems))


def listed(problems: list[str]) -> str:
  """One problem as it is; several as a list."""
  if len(problems) == 1:
    return problems[0]
  return '\n'.join([f'{len(problems)} problems:', *(f'  {problem}' for problem in problems)])
