"""A DiT-B on pixels: 128 px in patches of 8, so the 256 tokens of configs/dit_cfg.py without an autoencoder.

    python main.py --config=configs/dit_pixel.py --workdir=runs/dit-pixel --config.data.dir=DATA

Ours, to show what latents bring at the same size, steps and sampler; there is no published counterpart,
and nothing has been measured. About 3.1 hours on one H200 if 40% of its 790 TFLOP/s are reached; not
measured. --config.process.prediction_type=x0 is the choice of Li & He (2025, arXiv:2511.13720) for patches
this large.
"""

from diffusion_jax.configs import dit_cfg


def get_config():
  """configs/dit_cfg.py on pixels."""
  config = dit_cfg.get_config()
  config.space = 'pixel'
  config.model.dit.patch_size = 8
  config.sample.clip_x0 = True
  config.published.update(name='', fid=0.0, inception_score=0.0, inception_score_std=0.0)
  return config
