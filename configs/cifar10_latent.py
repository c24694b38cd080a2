"""A DiT on the latents of configs/cifar10_vae.py: as configs/cifar10.py:laptop, with the same 64 tokens.

    python main.py --config=configs/cifar10_latent.py --workdir=runs/cifar10-latent \
        --config.vae.checkpoint=runs/cifar10-vae --config.data.source=PATH

Minutes on two CPU cores. What it draws, beside pixel models of the same budget, stands in
docs/latent.md.
"""

from diffusion_jax.configs import cifar10


def get_config():
  """configs/cifar10.py:laptop on 8x8x3 latents, a token each."""
  config = cifar10.get_config('laptop')
  config.space = 'latent'
  config.vae.shift = 'channel'  # With so little KL the means of the channels are far from 0.
  config.model.dit.patch_size = 1
  return config
