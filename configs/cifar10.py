"""CIFAR-10, class-conditional, in pixels: a DiT-S/2, or the UNet of Ho et al. (2020, arXiv:2006.11239).

    python main.py --config=configs/cifar10.py --workdir=runs/cifar10
    python main.py --config=configs/cifar10.py --workdir=runs/cifar10-unet --config.model.name=unet

The data are prepared first: from TFDS's cifar10, if that is there, or from a folder or archive
train|test/CLASS/FILE given by --config.data.source=PATH. The sizes want a GPU and hours; what they
reach has not been measured here. configs/cifar10.py:laptop is small enough for two CPU cores: it
trains 400 steps in minutes and shows that the loss falls and pictures take shape, not more.
"""

from diffusion_jax.configs import base


def get_config(size: str = 'full'):
  """size: 'full' or 'laptop'."""
  if size not in ('full', 'laptop'):
    raise ValueError(f"size: got {size!r}, allowed 'full', 'laptop'")
  config = base.get_config()
  config.data.name = 'cifar10'
  config.data.image_size = 32
  config.data.channels = 3
  config.data.holdout = 0
  config.data.flip = True
  config.data.source = 'cifar10'
  config.model.unet.channels = 128
  config.model.unet.channel_mult = (1, 2, 2, 2)
  config.model.unet.attention_resolutions = (16,)
  config.model.unet.num_heads = 1
  config.model.unet.scale_shift_norm = False
  config.model.unet.frequency_shift = 1
  config.model.unet.norm_epsilon = 1e-6
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_steps = 5000
  config.train.num_steps = 200_000
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 10_000
  config.train.preview_every_steps = 10_000
  config.checkpoint.every_steps = 10_000
  config.eval.features.name = 'inception'
  config.eval.metrics = ('fid', 'inception_score', 'kid', 'precision_recall')
  if size == 'laptop':
    config.model.dit.patch_size = 4
    config.model.dit.hidden_size = 192
    config.model.dit.depth = 6
    config.model.unet.channels = 32
    config.model.unet.num_res_blocks = 1
    config.model.unet.attention_resolutions = (8,)
    config.model.unet.num_heads = 4
    config.model.unet.scale_shift_norm = True
    config.model.unet.frequency_shift = 0
    config.model.unet.norm_epsilon = 1e-5
    config.vae.channels = 32
    config.vae.num_res_blocks = 1
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.train.num_steps = 400
    config.train.batch_size = 64
    config.train.ema_decay = 0.99
    config.train.log_every_steps = 20
    config.train.holdout_every_steps = 400
    config.train.preview_every_steps = 200
    config.checkpoint.every_steps = 400
    config.eval.features.name = 'dataset_classifier'
    config.eval.metrics = ('fid', 'inception_score', 'label_accuracy')
    config.sample.num_steps = 25
    config.sample.grid_columns = 6
  return config
