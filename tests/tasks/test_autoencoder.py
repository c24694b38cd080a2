"""What the autoencoder's task hands to its compiled steps."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import vae
from diffusion_jax.experiment.checks import create
from diffusion_jax.models.perceptual import LPIPS
from diffusion_jax.tasks import autoencoder, shared, task_of
from tests.conftest import tiny_mapping

SMALL = {
  'task': 'autoencoder',
  'checkpoint.best_metric': 'holdout_psnr',
  'data.image_size': 16,
  'data.channels': 3,
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'vae.discriminator_channels': 8,
  'vae.discriminator_layers': 1,
  'vae.discriminator_start': 2,
  'optimizer.warmup_steps': 4,
}


def test_the_perceptual_network_is_an_argument_of_every_program(tmp_path, monkeypatch):
  """14.7 million weights: as constants they would be in the executable twice."""
  experiment = create(tiny_mapping(tmp_path, **SMALL))
  image = jnp.zeros((1, 16, 16, 3))
  abstract = jax.eval_shape(LPIPS().init, jax.random.key(0), image, image)['params']
  weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
  monkeypatch.setattr(autoencoder, 'perceptual_params', lambda config: weights)
  given = []
  monkeypatch.setattr(shared, 'compile_step', lambda *arguments: given.append(arguments))
  task_of(experiment).compile_step(0)
  assert len(given) == 2  # With the discriminator and without.
  batch = {'image': np.zeros((2, 16, 16, 3), np.uint8), 'label': np.zeros(2, np.int32)}
  for _, train_step, state, *frozen in given:
    constants = jax.make_jaxpr(train_step)(state, batch, *frozen).consts
    assert sum(np.size(x) * np.dtype(x.dtype).itemsize for x in constants) < 2**16
    assert jax.tree.structure(frozen[0]) == jax.tree.structure(weights)


def test_the_discriminator_follows_the_schedule_of_the_run(tmp_path):
  """It starts at step 2 of a warm-up over 4 to 1e-3; Adam's first step moves by the rate."""
  changes = {**SMALL, 'optimizer.learning_rate': 1e-3, 'optimizer.clip_norm': 0.0}
  trainer = create(tiny_mapping(tmp_path, **changes)).autoencoder_trainer
  optimizer, params = trainer.discriminator_optimizer, {'kernel': jnp.ones(2)}
  updates, _ = optimizer.update({'kernel': jnp.full(2, 0.3)}, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.75e-3, rtol=1e-4)


def test_the_published_training_does_not_clip():
  assert vae.get_config().optimizer.clip_norm == 0
