"""Training the KL autoencoder: reconstruction, KL and adversarial losses; PSNR and reconstructions."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.pixels import from_uint8, to_uint8
from diffusion_jax.experiment.autoencoder import perceptual_of
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting import images
from diffusion_jax.runtime import mesh
from diffusion_jax.tasks import shared
from diffusion_jax.training.autoencoder import AutoencoderState, AutoencoderTrainer

METRICS = ('psnr', 'reconstruction', 'kl')
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
  def _perceptual(self) -> Callable | None:
    return perceptual_of(self.experiment.config)

  def init_state(self) -> AutoencoderState:
    return self.experiment.init_state()

  def compile_step(self, start: int) -> Callable:
    """Two programs, chosen by the step's number: the discriminator's part is not paid for before."""
    config = self.experiment.config
    begins = config.vae.discriminator_start
    trainer = dataclasses.replace(self.trainer, perceptual=self._perceptual)
    wanted = {number > begins for number in (start + 1, config.train.num_steps)}
    programs = {
      adversarial: shared.compile_step(
        self.experiment,
        functools.partial(trainer.train_step, adversarial=adversarial),
        self.abstract_state,
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
    return {name: float(sums[name] / sums['count']) for name in METRICS}

  @functools.cached_property
  def _reconstruct(self) -> Callable:
    module = self.trainer.module

    @jax.jit
    def reconstruct(params, pixels):
      posterior = module.apply({'params': params}, from_uint8(pixels), method='encode')
      return to_uint8(module.apply({'params': params}, posterior.mean, method='decode'))

    return reconstruct

  def preview(self, state: AutoencoderState) -> np.ndarray:
    """Held-out images, each with its reconstruction at its right."""
    source = self.experiment.holdout_data
    count = min(ROWS * COLUMNS, source.num_examples)
    rows = max(count // COLUMNS, 1)
    columns = min(COLUMNS, count)
    chosen = np.linspace(0, source.num_examples - 1, rows * columns).round().astype(int)
    real = source.read(chosen)['image']
    padding = [(0, mesh.round_up(len(real), self.experiment.mesh) - len(real))] + [(0, 0)] * 3
    batch = mesh.to_devices(np.pad(real, padding), mesh.batch_sharding(self.experiment.mesh))
    made = jax.device_get(self._reconstruct(state.ema_params, batch))[: len(real)]
    pairs = np.stack([real, made], axis=1)  # (N, 2, H, W, C)
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
