"""The published DiT-XL/2 (Peebles & Xie 2023, arXiv:2212.09748): ImageNet at 256 px on KL-f8 latents.

    python main.py --config=configs/dit_xl.py --workdir=runs/imagenet --mode=prepare \
        --config.data.source=PATH_OR_TFDS_NAME --config.data.dir=DATA --config.vae.checkpoint=VAE
    python main.py --config=configs/dit_xl.py --workdir=runs/dit-xl --config.data.dir=DATA \
        --config.vae.checkpoint=VAE

VAE is Stable Diffusion's KL-f8, such as the diffusers directory sd-vae-ft-ema. To begin with published
weights: --config.init_from=DiT-XL-2-256x256.pt --config.allow_pickle=True. Published: FID 19.5 after
these 400,000 steps without guidance, 9.62 after 7,000,000, 2.27 at scale 1.5 (50,000 samples); ours are
not measured. About 64 hours on one H200 (8 on eight) if 40% of its 790 TFLOP/s are reached; not
measured. One needs --config.model.dit.remat=blocks to fit, which takes a third longer. As published,
guidance acts on three of the four channels; --config.sample.guide_channels=0 guides all.
"""

from diffusion_jax.configs import data


def get_config():
  """configs/data.py with all classes at 256 px, and DiT-XL/2 on KL-f8 latents."""
  config = data.get_config()
  config.space = 'latent'
  config.num_classes = 1000
  config.data.name = 'imagenet'
  config.data.image_size = 256
  config.data.class_list = 'all'
  config.schedule.name = 'linear'
  config.process.prediction_type = 'eps'
  config.process.learned_variance = True
  config.model.dit.hidden_size = 1152
  config.model.dit.depth = 28
  config.model.dit.num_heads = 16
  config.vae.channel_mult = (1, 2, 4, 4)
  config.vae.z_channels = 4
  config.vae.embed_channels = 4
  config.vae.scale = 0.18215
  config.optimizer.warmup_steps = 0
  config.optimizer.decay = 'constant'
  config.optimizer.clip_norm = 0.0
  config.train.num_steps = 400_000
  config.train.batch_size = 256
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 10_000
  config.train.preview_every_steps = 10_000
  config.checkpoint.every_steps = 10_000
  config.sampler.name = 'ddpm'
  config.sampler.ddpm.variance = 'learned'
  config.sample.num_samples = 50_000
  config.sample.num_steps = 250
  config.sample.spacing = 'linspace'
  config.sample.cfg_scale = 1.5
  config.sample.guide_channels = 3
  return config
