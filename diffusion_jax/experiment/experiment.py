"""Builds the parts of a run from a checked config, each at first use."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config.schema import Config
from diffusion_jax.data import class_names
from diffusion_jax.data.pipeline import Numbers, evaluation_batches
from diffusion_jax.diffusion.caching import Caching
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import Guidance, GuidanceOptions, guidance_of
from diffusion_jax.diffusion.pixels import to_uint8
from diffusion_jax.diffusion.process import Process
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import Metric
from diffusion_jax.experiment import first_stage
from diffusion_jax.experiment.autoencoder import module_of
from diffusion_jax.experiment.datasets import Datasets
from diffusion_jax.experiment.first_stage import FirstStage
from diffusion_jax.models.latents import Scaling, in_batches
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.objectives.base import Context
from diffusion_jax.runtime import presets
from diffusion_jax.runtime.mesh import (
  batch_sharding,
  batch_shards,
  local_rows,
  make_mesh,
  replicated,
  state_shardings,
  to_devices,
  within,
)
from diffusion_jax.training import resident
from diffusion_jax.training.compilation import Step, compile_steps, sum_over
from diffusion_jax.training.objective import Objective
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import TrainState, Weights, create_state
from diffusion_jax.types import Array, DataSource, NoiseSchedule, PyTree, Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """The parts of one run.

  config: the checked sections. mapping: the plain mapping that they were read from, ready for JSON.
  stored_meta: the description of the data that a work directory keeps, or None.
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

  @functools.cached_property
  def datasets(self) -> Datasets:
    return Datasets(self.config, self.stored_meta)

  @property
  def meta(self) -> Mapping[str, Any]:
    """The description of the images."""
    return self.datasets.meta

  @property
  def label_names(self) -> Sequence[str]:
    return self.datasets.label_names

  @functools.cached_property
  def train_data(self) -> DataSource:
    """The training examples. Raises: as Datasets.examples."""
    return self.datasets.examples('train')

  @functools.cached_property
  def holdout_data(self) -> DataSource:
    """The held-out examples. Raises: as Datasets.examples."""
    return self.datasets.examples('holdout')

  def open_data(self) -> None:
    """Opens and verifies both splits. Raises: as Datasets.examples."""
    _ = self.train_data, self.holdout_data

  @property
  def is_latent(self) -> bool:
    return self.config.space == 'latent'

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of an image."""
    data = self.config.data
    return data.image_size, data.image_size, data.channels

  @property
  def x0_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of x0: the image, or its latents."""
    if not self.is_latent:
      return self.image_shape
    side = self.config.data.image_size // self.autoencoder.factor
    return side, side, self.autoencoder.embed_channels

  @property
  def autoencoder(self) -> AutoencoderKL:
    """The module of config.vae. Raises: InputError for sizes that do not fit each other."""
    return module_of(self.config, self.dtype)

  @functools.cached_property
  def first_stage(self) -> FirstStage:
    """The weights of config.vae.checkpoint. Raises: as first_stage.load."""
    return first_stage.load(self.config)

  @functools.cached_property
  def scaling(self) -> Scaling | None:
    """Shift and scale of latents for a new run, NumPy: those of config.vae, or as measured at encoding.

    Raises: as Datasets.latents_meta.
    """
    if not self.is_latent:
      return None
    vae, unshifted = self.config.vae, np.zeros(self.x0_shape[-1], np.float32)
    if vae.scale and vae.shift == 'none':
      return Scaling(unshifted, np.float32(vae.scale))
    measured = self.datasets.latents_meta['statistics']
    if vae.shift == 'none':
      return Scaling(unshifted, np.float32(1 / measured['std']))
    scale = vae.scale or 1 / measured['std_centred']
    return Scaling(np.asarray(measured['mean'], np.float32), np.float32(scale))

  @functools.cached_property
  def decoder(self) -> PyTree:
    """The parameters that to_images needs, replicated; none in pixel space."""
    if not self.is_latent:
      return {}
    params = {name: self.first_stage.params[name] for name in ('decoder', 'post_quant_conv')}
    return to_devices(params, replicated(self.mesh))

  def to_images(self, decoder: PyTree, scaling: Scaling | None, x0: Array) -> Array:
    """Maps x0 (B, *x0_shape) to images (B, *image_shape) uint8 inside jit; the mesh must divide B."""
    if not self.is_latent:
      return to_uint8(x0)
    module, vae = self.autoencoder, self.config.vae

    def decode(z):
      return to_uint8(module.apply({'params': decoder}, z, method='decode'))

    z, shards = scaling.restore(x0), batch_shards(self.mesh)
    return in_batches(decode, z, batch_size=vae.batch_size, shards=shards)

  @functools.cached_property
  def dtype(self) -> jnp.dtype:
    """The type of activations: 'auto' is bfloat16 on accelerators and float32 on CPU."""
    if self.config.dtype == 'auto':
      return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
    return jnp.dtype(self.config.dtype).type

  @functools.cached_property
  def module(self) -> nn.Module:
    """The backbone."""
    return self._make_module(self.dtype)

  def _make_module(self, dtype: jnp.dtype) -> nn.Module:
    outputs = 2 if self.config.process.learned_variance else 1
    return self.config.model.build(
      out_channels=outputs * self.x0_shape[-1], num_classes=self.config.num_classes, dtype=dtype
    )

  @functools.cached_property
  def objective(self) -> Objective:
    """The objective of config.objective, whose functions see the mesh. Raises: as make_objective."""
    objective, seen = self.make_objective(self.dtype), functools.partial(within, self.mesh)
    network, reconstruct = objective.network, objective.reconstruct
    return dataclasses.replace(
      objective,
      gradients=seen(objective.gradients),
      holdout=seen(objective.holdout),
      network=network and (lambda parts: seen(network(parts))),
      reconstruct=reconstruct and seen(reconstruct),
    )

  def make_objective(self, dtype: jnp.dtype) -> Objective:
    """Builds the objective with activations of this dtype.

    Raises: InputError for sizes that do not fit each other.
    """
    return self.config.objective.build(context=self.context(dtype))

  def context(self, dtype: jnp.dtype) -> Context:
    """Returns what an objective is built from."""
    config = self.config
    return Context(
      seed=config.seed,
      num_steps=config.train.num_steps,
      num_classes=config.num_classes,
      image_shape=self.image_shape,
      x0_shape=self.x0_shape,
      flip=config.data.flip,
      dtype=dtype,
      ema_decay=config.train.ema_decay,
      process=self.process,
      time_sampling=config.time_sampling.build(),
      make_model=lambda: self._make_module(dtype),
      make_autoencoder=lambda: module_of(config, dtype),
      make_optimizer=functools.partial(
        make_optimizer,
        **dataclasses.asdict(config.optimizer),
        total_steps=config.train.num_steps,
      ),
      allow_pickle=config.allow_pickle,
    )

  @functools.cached_property
  def frozen(self) -> PyTree:
    """The parameters that the objective needs and does not train, replicated.

    Raises: InputError for missing weights.
    """
    return to_devices(self.objective.frozen(), replicated(self.mesh))

  @functools.cached_property
  def resident_data(self) -> dict[str, Array]:
    """All training examples on the devices under config.data.device_resident, else nothing."""
    if not self.config.data.device_resident:
      return {}
    return resident.load(self.train_data, self.mesh)

  def init_state(self, scaling: Scaling | None = None, given: PyTree | None = None) -> TrainState:
    """Makes the state at step 0, inside jit.

    scaling: that of latents. given: parameters of the model that replace those of the seed; an array with
    fewer rows replaces the last rows.
    """
    objective = self.objective
    parts = objective.init()
    if given is not None:
      parts['model'] = jax.tree.map(
        lambda own, new: new if own.shape == new.shape else own.at[len(own) - len(new) :].set(new),
        parts['model'],
        given,
      )
    return create_state(
      parts, objective.optimizers, objective.averages, objective.averaged, scaling
    )

  def initial_state(self) -> TrainState:
    """Makes the state at step 0 on the devices, a function of config.seed, cut as `mesh` says."""
    shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
    return jax.jit(functools.partial(self.init_state, self.scaling), out_shardings=shardings)()

  @property
  def step_input(self) -> DataSource:
    """The input of a step: examples, or their numbers if the devices hold the examples."""
    return Numbers(self.train_data) if self.config.data.device_resident else self.train_data

  @property
  def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and sharding of a batch of `step_input`."""
    size, cut = self.config.train.batch_size, batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct((size, *item.shape), item.dtype, sharding=cut)
      for name, item in self.step_input.element.items()
    }

  def compile_steps(self, start: int, several: int = 1) -> Step:
    """Compiles (step, state, batch, count) -> (state, metrics) for the steps after `start`; donates the state.

    several: the steps of a dispatch, see compilation.compile_steps; count is 1 or that.
    """
    config = self.config
    return compile_steps(
      self.objective,
      config.seed,
      self.abstract_state,
      self.abstract_batch,
      self.frozen,
      self.resident_data,
      range(start + 1, config.train.num_steps + 1),
      several,
      **self.step_options,
    )

  @property
  def step_options(self) -> dict[str, Any]:
    """The options of make_train_step."""
    train = self.config.train
    return {
      'accumulate': train.accumulate,
      'skip_grad_norm_above': train.skip_grad_norm_above,
    }

  @functools.cached_property
  def _holdout_step(self) -> Callable:
    return jax.jit(self.objective.holdout)

  def measure(
    self, weights: Weights, between: Callable[[], None] = lambda: None
  ) -> dict[str, float]:
    """Returns holdout_NAME: means of the objective over all held-out examples, each taken once.

    between: called before each batch.
    """
    size, cut = self.config.train.batch_size, batch_sharding(self.mesh)
    batches = evaluation_batches(
      self.holdout_data, batch_size=size, rows=local_rows(self.mesh, size)
    )
    evaluate = functools.partial(self._holdout_step, weights.parts, self.frozen, weights.scaling)
    sums = sum_over((to_devices(batch, cut) for batch in batches), evaluate, between)
    return {
      f'holdout_{name}': float(sums[name] / sums['count'])
      for name in self.objective.holdout_metrics
    }

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of config.mesh. Raises: InputError if the devices do not fit it."""
    given = self.config.mesh
    sizes = presets.sizes(given.preset, (given.data, given.fsdp, given.tensor))
    try:
      return make_mesh(*sizes)
    except ValueError as error:
      raise InputError(f'config.mesh (data, fsdp, tensor): {error}') from error

  @property
  def abstract_scaling(self) -> Scaling | None:
    """Shapes and dtypes of a scaling; None in pixel space."""
    if not self.is_latent:
      return None
    channels = self.x0_shape[-1]
    return Scaling(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((channels,), ())))

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and shardings of the state.

    Raises: InputError if the model does not fit the images, or the rules do not fit the state.
    """
    try:
      state = jax.eval_shape(self.init_state, self.abstract_scaling)
    except ValueError as error:
      path = self.config.model.section if self.objective.network else 'config.vae'
      raise InputError(f'{path}.{error}') from error
    try:
      sizes = self.config.mesh
      shardings = state_shardings(state, self.mesh, sizes.rules, sizes.preset)
    except ValueError as error:
      raise InputError(f'config.mesh.{error}') from error
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )

  @property
  def best_metric(self) -> str:
    """The metric that ranks checkpoints: a held-out one, or one of config.eval with its number of samples."""
    config = self.config
    name = config.checkpoint.best_metric
    own = name.removeprefix('holdout_') in self.objective.holdout_metrics
    return name if own else f'{name}@{config.train.eval_num_samples}'

  def times(self, num_steps: int) -> np.ndarray:
    """Returns the times of config.sample.spacing, (num_steps + 1,) float64 from noise to data.

    Raises: InputError if the schedule has no such times.
    """
    spacing = self.config.sample.spacing.build()
    try:
      return spacing(self.schedule, num_steps)
    except ValueError as error:
      raise InputError(f'config.sample.{error}') from error

  def generator(
    self, num_frames: int = 0, frame_examples: int = 0, num_steps: int = 0
  ) -> Generator:
    """Builds the sampling process of config.sample, with animation frames of the first examples.

    num_steps: 0 takes config.sample.num_steps.
    """
    sample = self.config.sample
    num_steps = num_steps or sample.num_steps
    return Generator(
      self.process,
      self.sampler,
      self.times(num_steps),
      self.x0_shape,
      seed=sample.seed,
      null_label=self.config.num_classes,
      guidance=self.guidance(),
      clip_x0=sample.clip_x0,
      guide_channels=sample.guide_channels,
      autoguided=self.has_guide,
      caching=self.caching,
      residual=self.residual_shape if self.caching else (),
      num_frames=min(num_frames, num_steps + 1),
      frame_examples=frame_examples,
    )

  def guidance(self, cfg_scale: float | None = None) -> Guidance:
    """Returns the guidance of config.sample, or the same at another scale."""
    sample = self.config.sample
    scale = sample.cfg_scale if cfg_scale is None else cfg_scale
    return guidance_of(scale, GuidanceOptions(**sample.guidance.options))

  @functools.cached_property
  def caching(self) -> Caching | None:
    """Returns the caching of config.sample; None where all steps run the blocks."""
    caching = Caching(**self.config.sample.cache.options)
    return caching if caching.interval > 1 else None

  @functools.cached_property
  def residual_shape(self) -> tuple[int, int]:
    """(N, d) of what the blocks of the model add to its tokens."""
    parts, inputs = self.abstract_state.weights().parts, self.objective.forward_inputs(1)
    cachable = self.objective.cachable
    made = jax.eval_shape(lambda parts, inputs: cachable(parts)(*inputs, None), parts, inputs)
    return made[1].shape[1:]

  @property
  def has_guide(self) -> bool:
    """Returns whether config.sample.guidance names a network for autoguidance."""
    guidance = self.config.sample.guidance
    return bool(guidance.workdir or guidance.checkpoint)

  @functools.cached_property
  def compiled(self) -> dict[Any, Any]:
    """Compiled programs of sampling, by what they depend on."""
    return {}

  @functools.cached_property
  def chosen_labels(self) -> tuple[int, ...]:
    """config.sample.labels as numbers. Raises: InputError for unknown class names."""
    try:
      return tuple(
        class_names.label_of(label, self.label_names) if isinstance(label, str) else label
        for label in self.config.sample.labels
      )
    except ValueError as error:
      raise InputError(f'config.sample.labels: {error}') from error

  def sample_labels(self, indices: np.ndarray) -> np.ndarray:
    """Returns the labels of sample numbers, int32: i mod num_classes, or the user's in turn or counted."""
    sample, classes = self.config.sample, np.arange(max(self.config.num_classes, 1))
    if sample.label_counts:
      return np.repeat(classes, sample.label_counts)[np.asarray(indices)].astype(np.int32)
    chosen = np.asarray(self.chosen_labels or classes)
    return chosen[np.asarray(indices) % len(chosen)].astype(np.int32)

  def metrics(self) -> dict[str, Metric]:
    """Builds the metrics of config.eval, by name."""
    return {choice.name: choice.build() for choice in self.config.eval.metrics}
