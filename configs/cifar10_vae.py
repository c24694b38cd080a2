"""A KL-f4 autoencoder reduced to 2.7 M parameters, for CIFAR-10 on two CPU cores in half an hour.

    python main.py --config=configs/cifar10_vae.py --workdir=runs/cifar10-vae --config.data.source=PATH

PATH as for configs/cifar10.py. It has neither the perceptual nor the adversarial loss: both want hours,
and weights to load. What it reaches, and latent models on it, stand in docs/latent.md.
"""

from diffusion_jax.configs import cifar10


def get_config():
  """The data and sizes of configs/cifar10.py:laptop."""
  config = cifar10.get_config('laptop')
  config.objective.name = 'autoencoder'
  config.objective.autoencoder.perceptual_weight = 0.0
  config.objective.autoencoder.discriminator_start = 2000  # Never.
  config.optimizer.clip_norm = 0.0  # Like configs/vae.py.
  config.train.num_steps = 2000
  config.train.batch_size = 16
  config.train.ema_decay = 0.995
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 2000
  config.train.preview_every_steps = 1000
  config.checkpoint.every_steps = 1000
  config.checkpoint.best_metric = 'holdout_psnr'
  config.checkpoint.best_mode = 'max'
  return config
