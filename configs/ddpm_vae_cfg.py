"""DDPM-VAE-CFG of the eight systems: configs/ddpm_vae.py with classes, sampled with guidance.

    python main.py --config=configs/ddpm_vae_cfg.py --workdir=runs/ddpm-vae-cfg --config.data.dir=DATA \
        --config.vae.checkpoint=PATH

PATH and what differs: configs/ddpm_vae.py. Published: FID 189.5, IS 5.79; ours are not measured. About
1.2 hours on one H200, reckoned as in configs/ddpm.py. The scale of guidance is ours.
"""

from diffusion_jax.configs import ddpm_vae


def get_config():
  """configs/ddpm_vae.py with classes."""
  config = ddpm_vae.get_config()
  config.num_classes = 100
  config.sample.cfg_scale = 2.0
  config.published.update(
    name='DDPM-VAE-CFG', fid=189.5, inception_score=5.79, inception_score_std=0.30
  )
  return config
