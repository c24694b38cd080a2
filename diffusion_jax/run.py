"""The library's entry: a Run is one resolved config with its work directory and what is built from both.

run = load_run('runs/quickstart', {'sampler.name': 'ddpm'}, checkpoint='best')
images = run.sample([7, 7, 2], num_steps=50, cfg_scale=2.0)
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.config import presets, shipped
from diffusion_jax.config.fields import updated
from diffusion_jax.config.options import unknown
from diffusion_jax.config.schema import Config
from diffusion_jax.data import class_names
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import make_denoiser
from diffusion_jax.diffusion.pixels import from_uint8
from diffusion_jax.diffusion.process import Process
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment import guide, preparation, resolve, stored
from diffusion_jax.experiment.checks import check_data, check_devices, create
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.facts import facts
from diffusion_jax.experiment.weights import load_checkpoint
from diffusion_jax.runtime import mesh
from diffusion_jax.sampling import inversion
from diffusion_jax.sampling.generation import compile_generate, size_of_batches
from diffusion_jax.training.objective import Batch, Metrics, Objective
from diffusion_jax.training.state import TrainState, Weights
from diffusion_jax.training.step import make_train_step
from diffusion_jax.types import Array, DataSource, Denoiser, NoiseSchedule, PyTree, Sampler

Labels = Sequence[int | str]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """One resolved config with what is built from it.

  Its weights are those of the work directory; without one they are initial, or given by with_state.
  """

  experiment: Experiment
  workdir: Path | None = None
  given: tuple[Weights, int] | None = None
  _compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict, repr=False)

  @property
  def config(self) -> Config:
    return self.experiment.config

  @property
  def process(self) -> Process:
    return self.experiment.process

  @property
  def schedule(self) -> NoiseSchedule:
    return self.experiment.schedule

  @property
  def sampler(self) -> Sampler:
    return self.experiment.sampler

  @property
  def objective(self) -> Objective:
    return self.experiment.objective

  @property
  def model(self) -> nn.Module:
    return self.experiment.module

  @property
  def label_names(self) -> Sequence[str]:
    return self.experiment.label_names

  @property
  def train_data(self) -> DataSource:
    """The examples of training, in no order. Raises: InputError if they are not prepared."""
    return self.experiment.train_data

  def prepare(self) -> None:
    """Prepares the data of config.data, and a latent system's latents, if that has not been done.

    Their description and pictures go into the work directory, or without one into config.data.dir.
    """
    preparation.ensure(self.experiment, self.workdir or self.experiment.datasets.folder)

  @functools.cached_property
  def step(self) -> int:
    """The step of the weights; 0 is untrained."""
    return self._restored[1]

  @functools.cached_property
  def weights(self) -> Weights:
    """All that sampling needs of a checkpoint. Raises: InputError, DamagedError."""
    return self._restored[0]

  @functools.cached_property
  def _restored(self) -> tuple[Weights, int]:
    if self.given:
      return self.given
    if self.workdir is None:
      return self.init().weights(), 0
    restored = load_checkpoint(self.experiment, self.workdir)
    return restored.state, restored.step

  @property
  def params(self) -> PyTree:
    """The model's parameters."""
    return self.weights.parts['model']

  def init(self) -> TrainState:
    """Makes the state at step 0, a function of config.seed."""
    return self.experiment.initial_state()

  def _once(self, key: Any, build: Callable[[], Callable]) -> Callable:
    """Compiles once for one set of static arguments."""
    if key not in self._compiled:
      self._compiled[key] = build()
    return self._compiled[key]

  def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Trains one step, compiled at the first call. Donates `state`, which cannot be used afterwards.

    batch: NumPy arrays as train_data.read returns them.
    """
    phase = self.objective.phase(int(state.step) + 1)
    seed, donated = self.config.seed, {'donate_argnums': 0}
    options = self.experiment.step_options
    step = self._once(
      ('train', phase),
      lambda: jax.jit(make_train_step(self.objective, seed, phase, **options), **donated),
    )
    return step(state, dict(batch), self.experiment.frozen)

  def with_state(self, state: TrainState) -> 'Run':
    """Returns a run that samples and measures with the (averaged) weights of `state`.

    The weights are copied, so train_step can go on with `state`.
    """
    copied = jax.tree.map(jnp.copy, state.weights(self.config.sample.average))
    return dataclasses.replace(self, given=(copied, int(state.step)))

  def times(self, num_steps: int = 0) -> np.ndarray:
    """Returns the times from noise to data, (num_steps + 1,) float64; 0 takes config.sample.num_steps."""
    return self.experiment.times(num_steps or self.config.sample.num_steps)

  def noise(self, indices: Sequence[int], seed: int | None = None) -> Array:
    """Draws x_T (N, *x0_shape) float32 of these sample numbers, where --mode=sample starts."""
    generator = self._generator(0, 1.0, seed)
    drawn = generator.noise(np.asarray(indices, np.uint32), generator.arguments.seed)
    return generator.start(drawn).x_t

  def sample(
    self,
    labels: Labels | None = None,
    *,
    indices: Sequence[int] | None = None,
    noise: Array | None = None,
    num_steps: int = 0,
    cfg_scale: float | None = None,
    seed: int | None = None,
  ) -> np.ndarray:
    """Makes images (N, H, W, C) uint8; arguments left out are those of config.sample.

    labels: numbers or class names, one a sample. indices: sample numbers, by default 0, 1, ...; sample i
    is that of --mode=sample, bit for bit if the whole set is made, otherwise up to rounding.
    noise: standard normal (N, *x0_shape), instead of that of the indices.
    Raises: InputError for labels, steps or guidance that the model does not have.
    """
    given = next((len(x) for x in (labels, indices, noise) if x is not None), None)
    count = self.config.sample.num_samples if given is None else given
    indices = np.asarray(np.arange(count) if indices is None else indices, np.uint32)
    labels = self._labels(labels, indices)
    if len({len(indices), len(labels), count if noise is None else len(noise)}) > 1:
      raise InputError(f'labels, indices, noise: got {count} of one, allowed as many of each')
    check_devices(self.experiment)
    cfg_scale = self.config.sample.cfg_scale if cfg_scale is None else cfg_scale
    size, devices = size_of_batches(self.experiment, count), self.experiment.mesh
    generator = self._generator(num_steps, cfg_scale, seed)
    generate = compile_generate(self.experiment, generator, size, self._guide_for(cfg_scale))
    made = []
    for start in range(0, count, size):
      rows = np.minimum(np.arange(start, start + size), count - 1)
      placed = (indices[rows], labels[rows], *(() if noise is None else [np.asarray(noise)[rows]]))
      index, label, *x_T = mesh.to_devices(placed, mesh.batch_sharding(devices))
      images, _ = generate(self.weights, index, label, noise=x_T[0] if x_T else None)
      made.append(mesh.to_host(images, devices))
    return np.concatenate(made)[:count]

  def denoiser(self, labels: Labels, *, cfg_scale: float = 1.0) -> Denoiser:
    """Returns (x_t (N, *x0_shape), t) -> Prediction, for a sampler of one's own."""
    labels = self._labels(labels, np.arange(len(labels)))
    sample = self.config.sample
    self._require_guidance(cfg_scale)

    guidance, other = self.experiment.guidance(cfg_scale), self._guide_for(cfg_scale)
    if guidance.momentum is not None:
      raise InputError(
        f'config.sample.guidance.momentum: got {guidance.momentum:g}, allowed 0: this denoiser does not '
        'remember the step before'
      )

    def apply(parts, others, condition, guidance, x_t, t):
      return make_denoiser(
        self.objective.network(parts),
        self.process,
        condition,
        null_label=self.config.num_classes,
        guidance=guidance,
        clip_x0=sample.clip_x0,
        guide_channels=sample.guide_channels,
        guide=other and other.network(others),
      )(x_t, jnp.float32(t))

    denoise = self._once(('denoiser', other is None), lambda: jax.jit(apply))
    condition, others = {'label': jnp.asarray(labels)}, other and other.parts
    return functools.partial(denoise, self.weights.parts, others, condition, guidance)

  def encode(self, images: np.ndarray) -> Array:
    """Maps images (N,H,W,C) uint8 to x0 (N, *x0_shape): in [-1, 1], or latents of the posterior mean."""
    if not self.experiment.is_latent:
      return from_uint8(jnp.asarray(images))
    first, scaling = self.experiment.first_stage, self.weights.scaling

    def build():
      def encode(params, images):
        apply = functools.partial(first.module.apply, {'params': params})
        return scaling.normalise(apply(from_uint8(images), method='encode').mean)

      return jax.jit(encode)

    return self._once('encode', build)(first.params, jnp.asarray(images))

  def to_images(self, x_0: Array) -> np.ndarray:
    """Maps x_0 (N, *x0_shape) to images (N,H,W,C) uint8."""
    experiment, count = self.experiment, len(x_0)
    rows = np.minimum(np.arange(mesh.round_up(count, experiment.mesh)), count - 1)
    placed = mesh.to_devices(np.asarray(x_0)[rows], mesh.batch_sharding(experiment.mesh))
    decode = self._once('to_images', lambda: jax.jit(experiment.to_images))
    made = decode(experiment.decoder, self.weights.scaling, placed)
    return mesh.to_host(made, experiment.mesh)[:count]

  def invert(
    self, images: np.ndarray, labels: Labels | None = None, *, num_steps: int = 0
  ) -> np.ndarray:
    """Finds the noise (N, *x0_shape) from which `sample` makes these images (N,H,W,C) uint8, without guidance.

    Runs config.sampler backwards, one label an image. Raises: InputError for a sampler that draws noise.
    """
    labels = self._labels(labels, np.arange(len(images)))
    self._generator(num_steps, 1.0, None)  # Fails where nothing can be sampled.
    program = self._once(
      ('invert', num_steps), lambda: inversion.compile_invert(self.experiment, num_steps)
    )
    return program(self.weights, np.asarray(self.encode(images)), labels)

  def interpolate(
    self,
    first: np.ndarray,
    second: np.ndarray,
    labels: Labels | None = None,
    *,
    count: int = 8,
    num_steps: int = 0,
  ) -> np.ndarray:
    """Makes images (N, count, H, W, C) uint8 from images (N,H,W,C) uint8 to others, through their noise.

    labels: one a pair, for all of its images. Raises: as invert.
    """
    labels = self._labels(labels, np.arange(len(first)))
    ends = [self.invert(images, labels, num_steps=num_steps) for images in (first, second)]
    noise = inversion.between(*ends, count)
    made = self.sample(
      np.repeat(labels, count),
      noise=noise.reshape(-1, *noise.shape[2:]),
      num_steps=num_steps,
      cfg_scale=1.0,
    )
    return made.reshape(len(first), count, *made.shape[1:])

  @functools.cached_property
  def evaluator(self) -> Evaluator:
    """The network, reference and metrics of config.eval."""
    return Evaluator(self.experiment)

  def features(self, images: np.ndarray) -> FeatureSet:
    """Computes features of images (N,H,W,C) uint8 by the network of config.eval."""
    return self.evaluator.features(Arrays(images, ''), np.arange(len(images)))

  def measure(self, images: np.ndarray) -> dict[str, float]:
    """Computes the metrics of config.eval for images (N,H,W,C) uint8 against its reference."""
    self.evaluator.check(len(images))
    return self.evaluator.measure(self.features(images)._replace(labels=None))

  def describe(self) -> dict[str, Any]:
    """Returns what --mode=describe --json prints."""
    check_devices(self.experiment)
    return facts(self.experiment)

  def _labels(self, labels: Labels | None, indices: np.ndarray) -> np.ndarray:
    if labels is None:
      return self.experiment.sample_labels(indices)
    try:
      found = [
        class_names.label_of(label, self.label_names) if isinstance(label, str) else int(label)
        for label in labels
      ]
    except ValueError as error:
      raise InputError(f'labels: {error}') from error
    most = max(self.config.num_classes - 1, 0)
    wrong = [label for label in found if not 0 <= label <= most]
    if wrong:
      raise InputError(f'labels: got {wrong}, allowed 0..{most}')
    return np.asarray(found, np.int32)

  def _require_guidance(self, cfg_scale: float) -> None:
    by_label = cfg_scale != 1 and not self.experiment.has_guide
    if by_label and not (self.config.num_classes and self.objective.guided):
      raise InputError(
        f'cfg_scale: got {cfg_scale:g}, allowed 1: the model was not trained without labels too'
      )

  @functools.cached_property
  def _guide(self) -> guide.Guide:
    return guide.load(self.experiment, self.workdir, self.weights.scaling)

  def _guide_for(self, cfg_scale: float) -> guide.Guide | None:
    """Loads the network of autoguidance if this scale needs it."""
    return self._guide if self.experiment.has_guide and cfg_scale != 1 else None

  def _generator(self, num_steps: int, cfg_scale: float, seed: int | None) -> Generator:
    if not self.objective.network:
      raise InputError(
        f'{self.config.objective.name}: makes no samples; train config.objective denoising'
      )
    self._require_guidance(cfg_scale)
    generator = self.experiment.generator(num_steps=num_steps)
    seed = generator.seed if seed is None else seed
    return dataclasses.replace(generator, guidance=self.experiment.guidance(cfg_scale), seed=seed)


def load_run(
  workdir: str | Path, overrides: Mapping[str, Any] | None = None, *, checkpoint: str = 'latest'
) -> Run:
  """Opens a work directory, with its checkpoint.

  overrides: field -> value, as 'sampler.name': 'ddpm'. checkpoint: 'latest', 'best' or a step.
  Raises: InputError if nothing was trained there, or an override contradicts it; DamagedError.
  """
  folder = Path(workdir).expanduser().absolute()
  given = {'sample.checkpoint': str(checkpoint), **(overrides or {})}
  mapping, given = presets.applied(updated(Config, stored.load(folder), given), given)
  mapping = resolve.remembered(folder, mapping, given)
  mapping, meta = resolve.trained('sample', folder, mapping, given)
  experiment = create(mapping, meta)
  check_data(experiment)
  return Run(experiment, folder)


def new_run(config: str | Path, overrides: Mapping[str, Any] | None = None) -> Run:
  """An untrained run of a shipped config, as 'quickstart' or 'dit_cfg:8', or of a file.

  Raises: InputError if there is no such config, or it cannot work.
  """
  name, _, argument = shipped.resolved(str(config)).partition(':')
  path = Path(name)
  if not path.is_file():
    raise InputError(unknown('config', name, shipped.names()))
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  made = module.get_config(argument) if argument else module.get_config()
  given = overrides or {}
  return Run(create(presets.applied(updated(Config, made.to_dict(), given), given)[0]))
