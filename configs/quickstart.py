"""A small DiT on scikit-learn's digits: real images, no download, minutes on two CPU cores.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart
    python main.py --config=configs/quickstart.py --workdir=runs/quickstart --mode=evaluate \
        --config.sample.cfg_scale=2

--config.model.name=unet trains a small UNet instead. What to expect stands in README.md.
"""

from diffusion_jax.configs import base


def get_config():
  """base, made small."""
  config = base.get_config()
  config.model.dit.hidden_size = 128
  config.model.dit.depth = 4
  config.model.dit.num_heads = 4
  config.model.unet.channels = 32
  config.model.unet.num_res_blocks = 1
  config.optimizer.learning_rate = 2e-3
  config.train.num_steps = 1000
  config.train.ema_decay = 0.995
  config.train.holdout_every_steps = 250
  config.train.preview_every_steps = 250
  config.checkpoint.every_steps = 250
  config.eval.neighbours = 10
  return config
