"""Training the KL autoencoder: reconstruction, KL and adversarial losses; PSNR and reconstructions."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffusion_jax.data.arrays import Arrays
from diffusion_jax.diffusion.pixels import from_uint8, to_uint8
from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.autoencoder import perceptual_params
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.models.perceptual import LPIPS
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh
from diffusion_jax.tasks import shared
from diffusion_jax.training.autoencoder import AutoencoderState, AutoencoderTrainer
from diffusion_jax.types import PyTree

METRICS = ('psnr', 'reconstruction', 'kl')  # Of held-out images.
ROWS, COLUMNS = 4, 5  # Of pairs in a preview.


@dataclasses.dataclass(frozen=True, eq=False)
class Autoencoder:
  """See tasks.Task."""

  experiment: Experiment

  @property
  def trainer(self) -> AutoencoderTrainer:
    return self.experiment.autoencoder_trainer

  @property
  def abstract_state(self) -> AutoencoderState:
    return self.experiment.abstract_state

  def require(self) -> None:
    """Raises: InputError without the perceptual loss's weights."""
    _ = self._perceptual

  @functools.cached_property
  def _perceptual(self) -> PyTree | None:
    return perceptual_params(self.experiment.config)

  def init_state(self) -> AutoencoderState:
    return self.experiment.init_state()

  def compile_step(self, start: int) -> Callable:
    """Two programs, chosen by the step's number: the discriminator's part is not paid for before."""
    config = self.experiment.config
    begins = config.vae.discriminator_start
    copies = mesh.replicated(self.experiment.mesh)
    frozen = {} if self._perceptual is None else mesh.to_devices(self._perceptual, copies)

    def train_step(state, batch, frozen, *, adversarial):
      distance = (lambda a, b: LPIPS().apply({'params': frozen}, a, b)) if frozen else None
      trainer = dataclasses.replace(self.trainer, perceptual=distance)
      return trainer.train_step(state, batch, adversarial=adversarial)

    wanted = {number > begins for number in (start + 1, config.train.num_steps)}
    programs = {
      adversarial: shared.compile_step(
        self.experiment,
        functools.partial(train_step, adversarial=adversarial),
        self.abstract_state,
        frozen,
      )
      for adversarial in wanted
    }
    return lambda number, state, batch: programs[number > begins](state, batch)

  @functools.cached_property
  def _evaluation_step(self) -> Callable:
    return jax.jit(self.trainer.evaluation_step)

  def measure(self, state: AutoencoderState) -> dict[str, float]:
    evaluate = functools.partial(self._evaluation_step, state.ema_params)
    sums = shared.sum_over_holdout(self.experiment, evaluate)
    return {f'holdout_{name}': float(sums[name] / sums['count']) for name in METRICS}

  @functools.cached_property
  def _reconstruct(self) -> Callable:
    module = self.trainer.module

    @functools.partial(jax.jit, out_shardings=mesh.replicated(self.experiment.mesh))
    def reconstruct(params, pixels):
      posterior = module.apply({'params': params}, from_uint8(pixels), method='encode')
      return to_uint8(module.apply({'params': params}, posterior.mean, method='decode'))

    return reconstruct

  def reconstruct(self, params: PyTree, images: np.ndarray) -> np.ndarray:
    """Images (N,H,W,C) uint8 -> what is left of them, encoded to the mean and decoded."""
    devices, parts = self.experiment.mesh, []
    size = mesh.round_up(min(self.experiment.config.train.batch_size, len(images)), devices)
    rows, sharding = mesh.local_rows(devices, size), mesh.batch_sharding(devices)
    starts = range(0, len(images), size)
    hidden = jax.process_index() > 0
    for start in tqdm(starts, desc='reconstructing', unit='batch', delay=3, disable=hidden):
      index = np.minimum(np.arange(start, start + size), len(images) - 1)
      batch = mesh.to_devices(images[index[rows]], sharding)
      parts.append(jax.device_get(self._reconstruct(params, batch))[: len(images) - start])
    return np.concatenate(parts)

  def features(self, state: AutoencoderState, evaluator: Evaluator, count: int) -> FeatureSet:
    """Of `count` held-out images' reconstructions."""
    source = evaluator.reference.source
    chosen = np.linspace(0, source.num_examples - 1, count).round().astype(int)
    made = self.reconstruct(state.ema_params, source.read(chosen)['image'])
    return evaluator.features(Arrays(made, ''), np.arange(count))._replace(labels=None)

  def preview(self, state: AutoencoderState) -> np.ndarray:
    """Held-out images, each with its reconstruction at its right."""
    source = self.experiment.holdout_data
    count = min(ROWS * COLUMNS, source.num_examples)
    rows = max(count // COLUMNS, 1)
    columns = min(COLUMNS, count)
    chosen = np.linspace(0, source.num_examples - 1, rows * columns).round().astype(int)
    real = source.read(chosen)['image']
    pairs = np.stack([real, self.reconstruct(state.ema_params, real)], axis=1)  # (N, 2, H, W, C)
    return images.grid(pairs.reshape(rows, 2 * columns, *real.shape[1:]))

  def forward(self, params, pixels, noise):
    return self.trainer.module.apply({'params': params}, pixels, noise)

  def forward_inputs(self, batch_size: int) -> tuple:
    module = self.trainer.module
    height, width, _ = self.experiment.image_shape
    latent = (height // module.factor, width // module.factor, module.embed_channels)
    return (
      jax.ShapeDtypeStruct((batch_size, *self.experiment.image_shape), jnp.float32),
      jax.ShapeDtypeStruct((batch_size, *latent), jnp.float32),
    )


def build(experiment: Experiment) -> Autoencoder:
  """The task of an experiment."""
  return Autoencoder(experiment)
