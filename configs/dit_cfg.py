"""DiT-VAE-CFG-12 and -8 of the eight systems: a DiT on latents, cosine schedule, 500 DDIM steps, guidance 3.

    python main.py --config=configs/dit_cfg.py --workdir=runs/dit-cfg --config.data.dir=DATA \
        --config.vae.checkpoint=PATH
    python main.py --config=configs/dit_cfg.py:8 --workdir=runs/dit-cfg-8 --config.data.dir=DATA \
        --config.vae.checkpoint=PATH

PATH and most of what differs: configs/ddpm_vae.py. Published: FID 167.7, IS 6.11 with 12 blocks, 313.3
and 1.78 with 8; ours are not measured. About 3.1 hours on one H200, 0.9 with 8 blocks, if 40% of its
790 TFLOP/s are reached; not measured. Time and class modulate every block (adaLN-Zero, DiT-B/2), where
the publication adds them to the tokens once.
"""

from diffusion_jax.configs import ddim_vae_cfg

SIZES = {
  '12': dict(hidden_size=768, depth=12, num_heads=12),
  '8': dict(hidden_size=512, depth=8, num_heads=8),
}
PUBLISHED = {
  '12': dict(name='DiT-VAE-CFG-12', fid=167.7, inception_score=6.11, inception_score_std=0.20),
  '8': dict(name='DiT-VAE-CFG-8', fid=313.3, inception_score=1.78, inception_score_std=0.02),
}


def get_config(size: str = '12'):
  """size: '12' or '8', the number of blocks."""
  if size not in SIZES:
    raise ValueError(f'size: got {size!r}, allowed {", ".join(map(repr, SIZES))}')
  config = ddim_vae_cfg.get_config()
  config.model.name = 'dit'
  config.model.dit.update(SIZES[size])
  config.optimizer.learning_rate = 1e-4
  config.sample.cfg_scale = 3.0
  config.published.update(PUBLISHED[size])
  return config
