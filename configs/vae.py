"""The KL-f4 autoencoder of the latent systems (Rombach et al. 2022), trained on ImageNet-100 at 128 px.

    python main.py --config=configs/vae.py --workdir=runs/vae --config.data.dir=DATA \
        --config.objective.autoencoder.perceptual_weights=FOLDER

FOLDER holds VGG16's and LPIPS's weights (the message without it says where they are); without them
--config.objective.autoencoder.perceptual_weight=0 trains on L1, KL and the adversary alone. Prepare
DATA first, with configs/data.py. The autoencoder alone comes to about 4.1 hours on one H200 if 40% of
its 790 TFLOP/s are reached; LPIPS and the discriminator come on top. Neither that nor what it reaches
has been measured.
"""

from diffusion_jax.configs import data


def get_config():
  """The data of configs/data.py, and the published losses."""
  config = data.get_config()
  config.objective.name = 'autoencoder'
  config.optimizer.learning_rate = 1e-4
  config.optimizer.decay = 'constant'
  config.optimizer.warmup_steps = 1000
  config.optimizer.b1 = 0.5
  config.optimizer.b2 = 0.9
  config.optimizer.clip_norm = 0.0  # The loss is a sum over pixels: its gradients are far above 1.
  config.train.num_steps = 200_000
  config.train.batch_size = 32
  config.train.ema_decay = 0.999
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 5000
  config.train.preview_every_steps = 5000
  config.checkpoint.every_steps = 5000
  config.checkpoint.best_metric = 'holdout_psnr'
  config.checkpoint.best_mode = 'max'
  return config
