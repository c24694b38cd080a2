"""Your own images: a folder CLASS/*.jpg, or one without classes, or an archive of either.

    python main.py --config=configs/folder.py:PATH --workdir=runs/photos
    python main.py --config=configs/folder.py:PATH --workdir=runs/photos --mode=sample
    python main.py --config=configs/folder.py:PATH --workdir=runs/photos --mode=evaluate

PATH is whatever --mode=prepare takes (docs/data.md). It gives the set its name; the images give

  the classes    the folders that they lie in; a folder without any trains an unconditional model
  the size       the largest of 128, 64 and 32 px that at most 1% of them are smaller than; where even
                 32 is too large, their own
  the channels   1 if all are gray, else 3
  the held-out   a tenth of every class, 5,000 in all at most, unless validation/, val/ or test/ is
  images         there

and any of it can be given: --config.data.image_size=64. The model is a DiT-S in 16 x 16 patches, which
wants a GPU. On CPUs make it smaller, with --config.data.image_size=32 --config.model.dit.hidden_size=192
--config.model.dit.depth=6 --config.train.num_steps=2000. Nothing has been measured; what quality comes
of it depends on the images, of which a few thousand a class are few. The evaluation's own network is
trained on the images; --config.eval.features.name=inception gives the FID of publications.
"""

from diffusion_jax.configs import base


def get_config(path: str = ''):
  """path: of the images."""
  if not path:
    raise ValueError('which images? --config=configs/folder.py:PATH')
  config = base.get_config()
  config.num_classes = -1
  config.data.source = path
  config.data.name = ''
  config.data.image_size = 0
  config.data.channels = 0
  config.data.holdout = -1
  config.data.flip = True
  config.model.dit.patch_size = 0
  config.model.unet.channels = 128
  config.model.unet.channel_mult = (1, 2, 2)
  config.model.unet.attention_resolutions = (16,)
  config.optimizer.warmup_steps = 1000
  config.train.num_steps = 50_000
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 2500
  config.train.preview_every_steps = 2500
  config.checkpoint.every_steps = 2500
  return config
