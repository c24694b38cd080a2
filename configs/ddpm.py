"""DDPM of the eight systems: pixels of ImageNet-100 at 128 px, no classes, UNet, 1,000 DDPM steps.

    python main.py --config=configs/ddpm.py --workdir=runs/ddpm --config.data.dir=DATA

Prepare DATA first, with configs/data.py. The first publication, in PyTorch, has FID 150.0 and IS 4.45;
ours are not measured. About 19 hours on one H200 if 40% of its 790 TFLOP/s are reached (UNets often
reach less); not measured. That is with blocks recomputed in the backward pass, without which the batch
does not fit; where four such GPUs share it, --config.model.unet.remat=none saves a quarter.

What differs from the publication, in all eight: batch 256 for 100,000 steps (202 epochs) with warm-up,
where it took 32 for 200 epochs; averaged parameters; mirroring as the only augmentation, because
rotated and recoloured training images return as samples; a last sampling step that ends on clean data.
In the UNet the class scales and shifts the norms, as time does; it came by attention to a single token,
whose softmax is constant. Heads are 64 channels wide, which Dhariwal & Nichol (2021, Section 3) found
best; how many the publication has is not known here. docs/systems.md has all systems.
"""

from diffusion_jax.configs import data


def get_config():
  """configs/data.py with the training that the eight systems share, and their first: DDPM."""
  config = data.get_config()
  config.num_classes = 0
  config.schedule.name = 'linear'
  config.process.prediction_type = 'eps'
  config.model.name = 'unet'
  config.model.unet.channels = 128
  config.model.unet.channel_mult = (1, 2, 2, 4)
  config.model.unet.attention_resolutions = (32, 16)
  config.model.unet.head_channels = 64
  config.model.unet.remat = 'blocks'
  config.optimizer.warmup_steps = 1000
  config.train.num_steps = 100_000
  config.train.batch_size = 256
  config.train.log_every_steps = 100
  config.train.holdout_every_steps = 5000
  config.train.preview_every_steps = 5000
  config.checkpoint.every_steps = 5000
  config.sampler.name = 'ddpm'
  config.sample.num_samples = 5000
  config.sample.num_steps = 1000
  config.sample.clip_x0 = True
  config.published.update(name='DDPM', fid=150.0, inception_score=4.45, inception_score_std=0.10)
  return config
