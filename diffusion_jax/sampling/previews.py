"""Makes the pictures and features of training: samples, or reconstructions where nothing is sampled."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.evaluation.extract import IN_FLIGHT, fetched
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh
from diffusion_jax.sampling.generation import compile_generate, size_of_batches
from diffusion_jax.training.state import Weights
from diffusion_jax.types import DataSource

MAX_ROWS = 10  # Classes in a preview.
ROWS, COLUMNS = 4, 5  # Pairs in a preview of reconstructions.


@dataclasses.dataclass(frozen=True, eq=False)
class Previews:
  """Makes pictures and features of one experiment, and compiles what they need at first use.

  between: called before each batch of features and reconstructions.
  """

  experiment: Experiment
  between: Callable[[], None] = lambda: None

  def picture(self, weights: Weights) -> np.ndarray:
    """(H', W', 3) uint8: samples from fixed noise, a row a class; or images beside reconstructions."""
    return self._grid(weights) if self.experiment.objective.network else self._pairs(weights)

  def features(self, weights: Weights, evaluator: Evaluator, count: int) -> FeatureSet:
    """Computes features of samples 0..count - 1, labelled by spread_labels, or of reconstructed images."""
    if self.experiment.objective.network:
      return self._sample_features(weights, evaluator, count)
    source = evaluator.reference.source
    made = self.reconstruct(weights, source.read(_spread(source, count))['image'])
    return evaluator.features(Arrays(made, ''), np.arange(count))._replace(labels=None)

  @functools.cached_property
  def _grid(self) -> Callable[[Weights], np.ndarray]:
    config, devices = self.experiment.config, self.experiment.mesh
    rows = min(max(config.num_classes, 1), MAX_ROWS)
    labels = np.repeat(np.arange(rows, dtype=np.int32), config.sample.grid_columns)
    padding = (0, mesh.round_up(len(labels), devices) - len(labels))
    inputs = (np.pad(np.arange(len(labels), dtype=np.uint32), padding), np.pad(labels, padding))
    steps = min(config.train.preview_steps, config.sample.num_steps)
    generator = without_guide(self.experiment, num_steps=steps)
    generate = compile_generate(self.experiment, generator, len(inputs[0]))
    local, sharding = mesh.local_rows(devices, len(inputs[0])), mesh.batch_sharding(devices)
    names = self.experiment.label_names[:rows] if config.num_classes else ()

    def grid(weights):
      made, _ = generate(weights, *mesh.to_devices(tuple(x[local] for x in inputs), sharding))
      made = mesh.to_host(made, devices)[: len(labels)]
      return images.grid(made.reshape(rows, -1, *made.shape[1:]), names)

    return grid

  @functools.cached_property
  def _sample_features(self) -> Callable[[Weights, Evaluator, int], FeatureSet]:
    """The images stay on the devices."""
    experiment, count = self.experiment, self.experiment.config.train.eval_num_samples
    size, classes = size_of_batches(experiment, count), max(experiment.config.num_classes, 1)
    rows, sharding = mesh.local_rows(experiment.mesh, size), mesh.batch_sharding(experiment.mesh)
    generate = compile_generate(experiment, without_guide(experiment), size)

    def features(weights, evaluator, count):
      parts = []
      for start in range(0, count, size):
        if len(parts) >= IN_FLIGHT:
          jax.block_until_ready(parts[-IN_FLIGHT][0])
        self.between()
        index = np.arange(start, start + size, dtype=np.uint32)
        labels = spread_labels(index, count, classes)
        placed = mesh.to_devices((index[rows], labels[rows]), sharding)
        part = evaluator.extractor.apply(generate(weights, *placed)[0], placed[1])
        parts.append((part, min(size, count - start)))
      return evaluator.with_known_labels(fetched(parts))

    return features

  @functools.cached_property
  def _reconstruct(self) -> Callable:
    copies = mesh.replicated(self.experiment.mesh)
    return jax.jit(self.experiment.objective.reconstruct, out_shardings=copies)

  def reconstruct(self, weights: Weights, images: np.ndarray) -> np.ndarray:
    """Images (N,H,W,C) uint8 -> what is left of them, encoded to the mean and decoded."""
    devices, parts = self.experiment.mesh, []
    size = mesh.round_up(min(self.experiment.config.train.batch_size, len(images)), devices)
    rows, sharding = mesh.local_rows(devices, size), mesh.batch_sharding(devices)
    starts = range(0, len(images), size)
    hidden = jax.process_index() > 0
    for start in tqdm(starts, desc='reconstructing', unit='batch', delay=3, disable=hidden):
      self.between()
      index = np.minimum(np.arange(start, start + size), len(images) - 1)
      batch = mesh.to_devices(images[index[rows]], sharding)
      parts.append(jax.device_get(self._reconstruct(weights.parts, batch))[: len(images) - start])
    return np.concatenate(parts)

  def _pairs(self, weights: Weights) -> np.ndarray:
    """Held-out images, each with its reconstruction at its right."""
    source = self.experiment.holdout_data
    count = min(ROWS * COLUMNS, source.num_examples)
    columns = min(COLUMNS, count)
    real = source.read(_spread(source, count // columns * columns))['image']
    return images.pairs(real, self.reconstruct(weights, real), columns)


def without_guide(experiment: Experiment, num_steps: int = 0) -> Generator:
  """The sampling process of config.sample, unguided where the guide is another network: none is loaded."""
  generator = experiment.generator(num_steps=num_steps)
  if not experiment.has_guide:
    return generator
  return dataclasses.replace(generator, guidance=experiment.guidance(1.0))


def _spread(source: DataSource, count: int) -> np.ndarray:
  """`count` examples from the first to the last."""
  return np.linspace(0, source.num_examples - 1, count).round().astype(int)


def spread_labels(index: np.ndarray, count: int, num_classes: int) -> np.ndarray:
  """The labels of samples `index` among `count`, int32: i mod num_classes.

  With fewer samples than classes floor(i num_classes / count), evenly over all classes, not the first
  ones alone. Numbers from `count` on fill a batch and are labelled as the last sample.
  """
  if count >= num_classes:
    return (index % num_classes).astype(np.int32)
  inside = np.minimum(index, count - 1).astype(np.int64)
  return (inside * num_classes // count).astype(np.int32)
