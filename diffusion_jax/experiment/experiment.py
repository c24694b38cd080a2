"""A config, checked, and the parts built from it. Nothing outside this package knows its shape."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.losses import DenoisingLoss
from diffusion_jax.diffusion.process import Process
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import FeatureNetwork, Metric
from diffusion_jax.experiment.fields import read
from diffusion_jax.experiment.sections import Config
from diffusion_jax.randomness import purpose_key
from diffusion_jax.runtime.mesh import make_mesh, state_shardings
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import TrainState, create_state
from diffusion_jax.training.step import Trainer
from diffusion_jax.types import Array, DataSource, NoiseSchedule, PyTree, Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """config: the checked sections. mapping: what they were read from, plain and JSON-ready."""

  config: Config
  mapping: Mapping[str, Any]

  @functools.cached_property
  def schedule(self) -> NoiseSchedule:
    return self.config.schedule.build()

  @functools.cached_property
  def process(self) -> Process:
    return Process(self.schedule, self.config.process.prediction)

  @functools.cached_property
  def sampler(self) -> Sampler:
    return self.config.sampler.build(schedule=self.schedule)

  @functools.cached_property
  def train_data(self) -> DataSource:
    return self.config.data.source.build(split='train')

  @functools.cached_property
  def holdout_data(self) -> DataSource:
    return self.config.data.source.build(split='holdout')

  @property
  def data_dir(self) -> Path:
    return Path(self.config.data.dir).expanduser()

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of what the backbone sees."""
    return self.train_data.element['image'].shape

  @functools.cached_property
  def dtype(self) -> jnp.dtype:
    """Of activations: 'auto' is bfloat16 on accelerators and float32 on CPU."""
    if self.config.dtype == 'auto':
      return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    return jnp.dtype(self.config.dtype).type

  @functools.cached_property
  def module(self) -> nn.Module:
    return self.config.model.build(
      out_channels=self.image_shape[-1], num_classes=self.config.num_classes, dtype=self.dtype
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
    )
    optimizer = make_optimizer(
      **dataclasses.asdict(config.optimizer), total_steps=config.train.num_steps
    )
    return Trainer(
      self.module, loss, optimizer, config.train.ema_decay, config.data.flip, config.seed
    )

  def init_params(self) -> PyTree:
    """Parameters at step 0, a function of the seed."""
    x = jnp.zeros((1, *self.image_shape), jnp.float32)
    key = purpose_key(self.config.seed, 'init')
    return self.module.init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))['params']

  def init_state(self) -> TrainState:
    """The state at step 0."""
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
  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and shardings of the state.

    Raises: InputError if the model does not fit the images, or the sharding rules the state.
    """
    try:
      state = jax.eval_shape(self.init_state)
    except ValueError as error:
      path = f'{self.config.model.path}.{self.config.model.name}'
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


def input_shapes(experiment: Experiment, batch_size: int) -> tuple[Array, Array, Array]:
  """ShapeDtypeStructs of the backbone's arguments x, time, y."""
  return (
    jax.ShapeDtypeStruct((batch_size, *experiment.image_shape), jnp.float32),
    jax.ShapeDtypeStruct((batch_size,), jnp.float32),
    jax.ShapeDtypeStruct((batch_size,), jnp.int32),
  )


def create(mapping: Mapping[str, Any]) -> Experiment:
  """Reads and checks everything that the config alone decides.

  Raises: InputError that lists every problem found.
  """
  from diffusion_jax.experiment import checks

  problems: list[str] = []
  config = read(Config, mapping, 'config', problems)
  if config is None:
    raise InputError(listed(problems))
  experiment = Experiment(config, mapping)
  problems = checks.config_problems(experiment)
  if problems:
    raise InputError(listed(problems))
  return experiment


def check_with_data(experiment: Experiment) -> None:
  """Checks what depends on the data and the devices, before anything is compiled.

  Raises: InputError that lists every problem found.
  """
  from diffusion_jax.experiment import checks

  problems = checks.data_problems(experiment)
  if problems:
    raise InputError(listed(problems))


def listed(problems: list[str]) -> str:
  """One problem as it is; several as a list."""
  if len(problems) == 1:
    return problems[0]
  return '\n'.join([f'{len(problems)} problems:', *(f'  {problem}' for problem in problems)])
