"""Training a diffusion model: the denoising loss, held-out loss, samples from fixed noise."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.evaluation.extract import fetched
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.generation import size_of_batches
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh
from diffusion_jax.tasks import shared
from diffusion_jax.training.state import TrainState

MAX_ROWS = 10  # Classes in a preview.


@dataclasses.dataclass(frozen=True, eq=False)
class Diffusion:
  """See tasks.Task."""

  experiment: Experiment

  @property
  def abstract_state(self) -> TrainState:
    return self.experiment.abstract_state

  def require(self) -> None:
    """Nothing."""

  def init_state(self) -> TrainState:
    return self.experiment.init_state(self.experiment.scaling)

  def compile_step(self, start: int) -> Callable:
    del start
    step = shared.compile_step(
      self.experiment, self.experiment.trainer.train_step, self.abstract_state
    )
    return lambda number, state, batch: step(state, batch)

  @functools.cached_property
  def _evaluation_step(self) -> Callable:
    return jax.jit(self.experiment.trainer.evaluation_step)

  def measure(self, state: TrainState) -> dict[str, float]:
    evaluate = functools.partial(self._evaluation_step, state.ema_params, state.scaling)
    losses, counts = shared.sum_over_holdout(self.experiment, evaluate)
    return {'holdout_loss': float(losses / counts)}

  @functools.cached_property
  def _draw(self) -> Callable[[TrainState], np.ndarray]:
    """state -> one picture from fixed noise, a row a class."""
    experiment = self.experiment
    num_classes = experiment.config.num_classes
    rows, columns = min(max(num_classes, 1), MAX_ROWS), experiment.config.sample.grid_columns
    labels = np.repeat(np.arange(rows, dtype=np.int32), columns)
    steps = min(experiment.config.train.preview_steps, experiment.config.sample.num_steps)
    generator, trainer = experiment.generator(num_steps=steps), experiment.trainer
    padding = (0, mesh.round_up(len(labels), experiment.mesh) - len(labels))
    inputs = (np.pad(np.arange(len(labels), dtype=np.uint32), padding), np.pad(labels, padding))
    sharding = mesh.batch_sharding(experiment.mesh)
    local = mesh.local_rows(experiment.mesh, len(inputs[0]))

    @functools.partial(jax.jit, out_shardings=mesh.replicated(experiment.mesh))
    def generate(params, scaling, decoder, indices, labels):
      x_0, _ = generator(trainer.network(params), indices, labels)
      return experiment.to_images(decoder, scaling, x_0)

    def draw(state) -> np.ndarray:
      placed = mesh.to_devices(tuple(x[local] for x in inputs), sharding)
      made = generate(state.ema_params, state.scaling, experiment.decoder, *placed)
      made = jax.device_get(made)
      made = made[: len(labels)].reshape(rows, columns, *made.shape[1:])
      return images.grid(made, experiment.label_names[:rows] if num_classes else ())

    return draw

  def preview(self, state: TrainState) -> np.ndarray:
    return self._draw(state)

  @functools.cached_property
  def _generate(self) -> Callable:
    """(params, scaling, decoder, indices, labels) -> images uint8, where their samples were made."""
    experiment = self.experiment
    generator, trainer = experiment.generator(), experiment.trainer

    @functools.partial(jax.jit, out_shardings=mesh.batch_sharding(experiment.mesh))
    def generate(params, scaling, decoder, indices, labels):
      x_0, _ = generator(trainer.network(params), indices, labels)
      return experiment.to_images(decoder, scaling, x_0)

    return generate

  def features(self, state: TrainState, evaluator: Evaluator, count: int) -> FeatureSet:
    """Of samples 0..count - 1, labelled by spread_labels; the images stay on the devices."""
    experiment = self.experiment
    classes = max(experiment.config.num_classes, 1)
    size = size_of_batches(experiment, count)
    rows, sharding = mesh.local_rows(experiment.mesh, size), mesh.batch_sharding(experiment.mesh)
    fixed, parts = (state.ema_params, state.scaling, experiment.decoder), []
    for start in range(0, count, size):
      index = np.arange(start, start + size, dtype=np.uint32)
      labels = spread_labels(index, count, classes)
      placed = mesh.to_devices((index[rows], labels[rows]), sharding)
      part = evaluator.extractor.apply(self._generate(*fixed, *placed), placed[1])
      parts.append((part, min(size, count - start)))
    return evaluator.with_known_labels(fetched(parts))

  def forward(self, params, x, time, condition):
    return self.experiment.trainer.network(params)(x, time, condition)

  def forward_inputs(self, batch_size: int) -> tuple:
    return (
      jax.ShapeDtypeStruct((batch_size, *self.experiment.x0_shape), jnp.float32),
      jax.ShapeDtypeStruct((batch_size,), jnp.float32),
      {'label': jax.ShapeDtypeStruct((batch_size,), jnp.int32)},
    )


def spread_labels(index: np.ndarray, count: int, num_classes: int) -> np.ndarray:
  """The labels of samples `index` among `count`, int32: i mod num_classes.

  With fewer samples than classes floor(i num_classes / count), evenly over all classes, not the first
  ones alone. Numbers from `count` on fill a batch and are labelled as the last sample.
  """
  if count >= num_classes:
    return (index % num_classes).astype(np.int32)
  inside = np.minimum(index, count - 1).astype(np.int64)
  return (inside * num_classes // count).astype(np.int32)


def build(experiment: Experiment) -> Diffusion:
  """The task of an experiment."""
  return Diffusion(experiment)
