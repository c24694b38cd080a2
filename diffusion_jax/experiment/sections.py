"""The sections of a config, as frozen dataclasses. configs/base.py explains every field."""

import dataclasses
import re
from typing import Any

from diffusion_jax.experiment.fields import Choice, choice, one_of, where

COUNT = (lambda n: n >= 1, '>= 1')
NOT_NEGATIVE = (lambda x: x >= 0, '>= 0')
SEED = (lambda n: 0 <= n < 2**63, '0..2^63 - 1')  # What a random key can hold.
FILE_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_-]*')
FINGERPRINT = (lambda f: not f or len(f) == 16, "16 hexadecimal digits or ''")
SPLITS = ('holdout', 'train')  # Of prepared images.
TASK_METRICS = {
  'diffusion': ('holdout_loss',),
  'autoencoder': ('holdout_psnr', 'holdout_reconstruction', 'holdout_kl'),
}
SHARE = (lambda x: 0 <= x < 1, '0 <= x < 1')


@dataclasses.dataclass(frozen=True)
class Data:
  """config.data"""

  name: str = where(lambda n: FILE_NAME.fullmatch(n), 'letters, digits, _ and -')
  dir: str = where(bool, 'a folder')
  image_size: int = where(lambda n: 1 <= n <= 4096, '1..4096, or 0: as suits the data')
  channels: int = one_of(1, 3)
  class_list: str = where(bool, "'all', 'cmc', 'kaggle' or a file")
  label_order: str = one_of('sorted', 'file')
  holdout: int = where(lambda n: n >= -1, '>= -1')
  split_seed: int = where(lambda n: 0 <= n < 2**32, '0..2^32 - 1')
  fingerprint: str = where(*FINGERPRINT)
  flip: bool
  device_resident: bool
  verify: str = one_of('full', 'quick')
  source: str
  max_bad_fraction: float = where(lambda x: 0 <= x <= 1, '0 <= x <= 1')
  workers: int = where(*NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Process:
  """config.process"""

  prediction: str = one_of('eps', 'x0', 'v', 'velocity')
  learned_variance: bool


@dataclasses.dataclass(frozen=True)
class Loss:
  """config.loss"""

  label_drop: float = where(*SHARE)
  weighting: str = one_of('none', 'min_snr')
  min_snr_gamma: float = where(lambda x: x > 0, '> 0')
  vlb_weight: float = where(*NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Vae:
  """config.vae"""

  channels: int = where(*COUNT)
  channel_mult: tuple[int, ...]
  num_res_blocks: int = where(*COUNT)
  z_channels: int = where(*COUNT)
  embed_channels: int = where(*COUNT)
  checkpoint: str
  fingerprint: str = where(*FINGERPRINT)
  scale: float = where(*NOT_NEGATIVE)
  shift: str = one_of('none', 'channel')
  batch_size: int = where(*COUNT)
  kl_weight: float = where(*NOT_NEGATIVE)
  perceptual_weight: float = where(*NOT_NEGATIVE)
  perceptual_weights: str
  discriminator_start: int = where(*NOT_NEGATIVE)
  discriminator_weight: float = where(*NOT_NEGATIVE)
  discriminator_channels: int = where(lambda n: n > 0 and n % 8 == 0, 'positive multiples of 8')
  discriminator_layers: int = where(*COUNT)

  def sizes(self) -> dict[str, Any]:
    """The arguments of models.vae.make_autoencoder."""
    names = ('channels', 'channel_mult', 'num_res_blocks', 'z_channels', 'embed_channels')
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """config.optimizer"""

  learning_rate: float = where(lambda x: x > 0, '> 0')
  warmup_steps: int = where(*NOT_NEGATIVE)
  decay: str = one_of('cosine', 'constant')
  b1: float = where(*SHARE)
  b2: float = where(*SHARE)
  eps: float = where(lambda x: x > 0, '> 0')
  weight_decay: float = where(*NOT_NEGATIVE)
  clip_norm: float = where(*NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Train:
  """config.train"""

  num_steps: int = where(*COUNT)
  batch_size: int = where(*COUNT)
  ema_decay: float = where(*SHARE)
  log_every_steps: int = where(*COUNT)
  holdout_every_steps: int = where(*COUNT)
  preview_every_steps: int = where(*COUNT)
  preview_steps: int = where(*COUNT)
  eval_every_steps: int = where(*NOT_NEGATIVE)
  eval_num_samples: int = where(lambda n: n >= 2, '>= 2')
  max_skipped: int = where(*COUNT)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """config.checkpoint"""

  every_steps: int = where(*COUNT)
  keep_newest: int = where(*COUNT)
  keep_best: int = where(*NOT_NEGATIVE)
  best_metric: str
  best_mode: str = one_of('min', 'max')


@dataclasses.dataclass(frozen=True)
class Sample:
  """config.sample"""

  name: str = where(lambda n: '/' not in n and not n.startswith('.'), "a file name or ''")
  checkpoint: str = where(
    lambda c: c in ('latest', 'best') or c.isdigit(), "'latest', 'best' or a step"
  )
  num_samples: int = where(*COUNT)
  batch_size: int = where(*COUNT)
  num_steps: int = where(*COUNT)
  spacing: str = one_of('trailing', 'leading', 'linspace')
  cfg_scale: float = where(*NOT_NEGATIVE)
  guide_channels: int = where(*NOT_NEGATIVE)
  clip_x0: bool
  labels: tuple[int | str, ...]
  label_counts: tuple[int, ...]
  seed: int = where(*SEED)
  ema: bool
  grid_columns: int = where(*COUNT)
  gif_frames: int = where(lambda n: n >= 2, '>= 2')
  export: tuple[str, ...] = where(lambda e: set(e) <= {'npz', 'png'}, "of 'npz', 'png'")


@dataclasses.dataclass(frozen=True)
class Eval:
  """config.eval"""

  num_samples: int = where(lambda n: n == 0 or n >= 2, '0 or >= 2')
  num_seeds: int = where(*COUNT)
  reference: str = where(bool, "'holdout', 'train', a folder or an .npz file")
  backend: str = one_of('jax', 'torch_fidelity')
  batch_size: int = where(*NOT_NEGATIVE)
  inception_weights: str
  neighbours: int = where(*NOT_NEGATIVE)
  features: Choice = choice('evaluation.features', ['context'])
  metrics: tuple[Choice, ...] = choice('evaluation')
  real_baseline: bool


@dataclasses.dataclass(frozen=True)
class Published:
  """config.published"""

  name: str
  fid: float = where(*NOT_NEGATIVE)
  inception_score: float = where(*NOT_NEGATIVE)
  inception_score_std: float = where(*NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Report:
  """config.report"""

  num_classes: int = where(*COUNT)
  moments: int = where(lambda n: n >= 2, '>= 2')


@dataclasses.dataclass(frozen=True)
class Bench:
  """config.bench"""

  subject: Choice = choice('benchmarks', ['experiment', 'repeats'])
  repeats: int = where(*COUNT)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """config.mesh"""

  data: int
  fsdp: int
  tensor: int
  rules: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Logging:
  """config.logging"""

  wandb_project: str


@dataclasses.dataclass(frozen=True)
class Config:
  """The whole config."""

  task: str = one_of('diffusion', 'autoencoder')
  seed: int = where(*SEED)
  init_from: str
  allow_pickle: bool
  space: str = one_of('pixel', 'latent')
  num_classes: int = where(lambda n: n >= 0, '>= 0, or -1: as many as the data have')
  dtype: str = one_of('auto', 'float32', 'bfloat16')
  data: Data
  schedule: Choice = choice('diffusion.schedules')
  process: Process
  loss: Loss
  vae: Vae
  model: Choice = choice('models', ['out_channels', 'num_classes', 'dtype'])
  optimizer: Optimizer
  train: Train
  checkpoint: Checkpoint
  sampler: Choice = choice('diffusion.samplers', ['schedule'])
  sample: Sample
  eval: Eval
  published: Published
  report: Report
  bench: Bench
  mesh: Mesh
  logging: Logging
