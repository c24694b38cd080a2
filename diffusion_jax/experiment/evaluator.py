"""Measures images under config.eval: its network, reference and metrics, and the protocol of a result."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.config.schema import SPLITS
from diffusion_jax.data import adm, image_folder
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation import fid, torch_fidelity
from diffusion_jax.evaluation.extract import Extractor, num_features
from diffusion_jax.evaluation.types import (
  Context,
  FeatureNetwork,
  FeatureSet,
  FeatureStats,
  Metric,
  Sizes,
)
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.pretrained import inception
from diffusion_jax.runtime.patience import alive
from diffusion_jax.types import DataSource

CPU_BATCH_SIZE = 8  # More images at once are slower there: their activations leave the caches.


class Reference(NamedTuple):
  """The reference of a comparison: images, statistics of their features, or both.

  source: None if there are only statistics. stats: None unless they are given.
  """

  source: DataSource | None
  stats: FeatureStats | None
  fingerprint: str

  @property
  def size(self) -> int:
    """The number of images; 0 if unknown."""
    return self.source.num_examples if self.source else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Measures images under config.eval; opens data and loads the network at first use."""

  experiment: Experiment

  @functools.cached_property
  def network(self) -> FeatureNetwork:
    """The feature network, trained, downloaded or loaded as needed. Raises: as its build."""
    config, datasets = self.experiment.config, self.experiment.datasets
    path, allow_pickle = config.eval.inception_weights, config.allow_pickle
    context = Context(datasets.images, datasets.folder, path, allow_pickle)
    return config.eval.features.build(context=context)

  @functools.cached_property
  def metrics(self) -> Mapping[str, Metric]:
    return self.experiment.metrics()

  @property
  def cache(self) -> Path:
    """The folder that keeps features of data for all runs."""
    return self.experiment.datasets.folder / 'features'

  @functools.cached_property
  def extractor(self) -> Extractor:
    """Runs the network on all devices."""
    size = CPU_BATCH_SIZE if jax.default_backend() == 'cpu' else 100
    size = self.experiment.config.eval.batch_size or size
    return Extractor(self.network, self.experiment.mesh, size)

  @functools.cached_property
  def reference(self) -> Reference:
    """The images or statistics of config.eval.reference. Raises: InputError, DamagedError."""
    given = self.experiment.config.eval.reference
    if given in SPLITS:
      source = self.experiment.datasets.images(given)
      return Reference(source, None, source.fingerprint)
    path = Path(given).expanduser()
    if path.is_dir():
      source = image_folder.open_folder(path, self.experiment.config.data.channels)
      return Reference(source, None, source.fingerprint)
    if not path.is_file():
      raise InputError(
        f'config.eval.reference: {path}: no such file or folder; allowed {", ".join(SPLITS)}, a folder '
        'of images, or an .npz file of images or mu and sigma'
      )
    found = adm.read(path)
    stats = None if found.mean is None else FeatureStats(found.mean, found.covariance)
    images, digest = found.images, found.digest
    if images is not None and self.experiment.config.data.channels == 1:
      one = images[..., :1]
      if (images == one).all():  # The form has three channels, of samples with one too.
        images, digest = one, f'{digest}-grey'
    source = None if images is None else Arrays(images, digest)
    return Reference(source, stats, digest)

  def check(self, num_samples: int) -> list[str]:
    """Returns warnings about the numbers to come, before any image is made or read.

    Raises: InputError that lists what cannot be measured and why.
    """
    if self.experiment.config.eval.backend == 'torch_fidelity':
      torch_fidelity.version()
    shape, reference = self.experiment.image_shape, self.reference
    size = num_features(self.network, shape)
    warnings, problems = list(self.network.warnings), []
    for name, metric in self.metrics.items():
      try:
        warnings += metric.check(Sizes(num_samples, reference.size, size))
      except ValueError as error:
        field = str(error).split(':')[0]
        place = 'config.eval' if field in ('num_samples', 'reference') else f'config.eval.{name}'
        problems.append(f'{place}.{error} (metric {name!r})')
    if reference.stats and len(reference.stats.mean) != size:
      problems.append(
        f'config.eval.reference: statistics of {len(reference.stats.mean):,} features, but '
        f'{self.network.name!r} has {size:,}'
      )
    theirs = reference.source and tuple(reference.source.element['image'].shape)
    if theirs and theirs != shape:
      told = f'images {"x".join(map(str, theirs))}, but samples are {"x".join(map(str, shape))}'
      if self.network.resize == 'none':
        problems.append(
          f'config.eval.reference: {told}, which {self.network.name!r} cannot compare'
        )
      elif theirs[:2] != shape[:2]:
        warnings.append(f'the reference has {told}: their sharpness is compared too')
    if problems:
      raise InputError('\n'.join(problems))
    return warnings

  def features(
    self, source: DataSource, indices: np.ndarray, cache: Path | None = None
  ) -> FeatureSet:
    """Computes features of some images of a source; keeps labels only if the model has classes."""
    return self.with_known_labels(self.extractor(source, indices, cache))

  def with_known_labels(self, found: FeatureSet) -> FeatureSet:
    """Drops the labels if the model has no classes or the network knows other classes."""
    known = self.experiment.config.num_classes and self.network.knows_labels
    return found if known else found._replace(labels=None)

  @functools.cached_property
  def reference_features(self) -> FeatureSet:
    """Features of all reference images, kept in `cache`."""
    source, stats, _ = self.reference
    if source is None:
      return FeatureSet(None, None, None, stats)
    found = self.features(source, np.arange(source.num_examples), self.cache)
    return found._replace(stats=stats or fid.feature_stats(found.features))

  def measure(self, samples: FeatureSet) -> dict[str, float]:
    """Computes all metrics of config.eval by backend 'jax'."""
    results: dict[str, float] = {}
    for name, metric in self.metrics.items():
      reference = self.reference_features
      with alive(f'computing {name}'):
        results.update(metric(samples, reference))
    return results

  def measure_images(
    self, source: DataSource, indices: np.ndarray, cache: Path | None = None
  ) -> dict[str, float]:
    """Computes the metrics of images by the backend of config.eval."""
    config = self.experiment.config
    if config.eval.backend == 'jax':
      return self.measure(self.features(source, indices, cache))
    weights = inception.load(
      config.eval.inception_weights,
      self.experiment.datasets.folder,
      allow_pickle=config.allow_pickle,
    )
    reference = self.reference.source
    if reference is None:
      raise InputError(
        "config.eval.reference: got statistics alone, allowed images with backend 'torch_fidelity'"
      )
    found = torch_fidelity.measure(
      source.read(indices)['image'],
      reference.read(np.arange(reference.num_examples))['image'],
      weights.state,
      {choice.name: dict(choice.options) for choice in config.eval.metrics},
      batch_size=self.extractor.batch_size,
    )
    return found.metrics

  def protocol(self, num_samples: int, class_balance: str) -> dict[str, Any]:
    """Returns the protocol: results can be compared only if all of it is the same."""
    config = self.experiment.config.eval
    backend = config.backend
    if backend == 'torch_fidelity':
      backend = f'torch_fidelity {torch_fidelity.version()}'
    return {
      'num_samples': num_samples,
      'class_balance': class_balance,
      'features': self.network.name,
      'features_digest': self.network.digest,
      'backend': backend,
      'reference': self.reference.fingerprint,
      'reference_size': self.reference.size,
      'resize': self.network.resize,
      'quantisation': 'floor(127.5 x + 128)',
      'metrics': {choice.name: dict(choice.options) for choice in config.metrics},
    }
