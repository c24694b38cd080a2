"""The sections of a config: every field with its default, comment and check.

Options of a plug-in (a model, a schedule, a sampler, a feature network, a metric, a benchmark) stand in
its own file. --mode=describe --fields prints them all.
"""

import dataclasses
import re
from typing import Any

from diffusion_jax.config.fields import Choice, choice
from diffusion_jax.config.options import (
  BY_COMMAND,
  COUNT,
  IF_GIVEN,
  NEVER,
  NOT_NEGATIVE,
  POSITIVE,
  SEED,
  SETTING,
  SHARE,
  Check,
  at_least,
  one_of,
  option,
)

NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_-]*')
FINGERPRINT = Check(lambda f: not f or len(f) == 16, "16 hexadecimal digits or ''")
SPLITS = ('holdout', 'train')  # Of prepared images.
TASK_METRICS = {
  'diffusion': ('holdout_loss',),
  'autoencoder': ('holdout_psnr', 'holdout_reconstruction', 'holdout_kl'),
}


@dataclasses.dataclass(frozen=True)
class Data:
  """One prepared set; --mode=prepare makes it, every run finds it."""

  name: str = option(
    'digits',
    "Of the set: its folder is DIR/NAME-SIZE-FINGERPRINT; '' is after the class list or the source.",
    Check(lambda n: bool(NAME.fullmatch(n)), 'letters, digits, _ and -'),
  )
  dir: str = option(
    'data',
    'Where prepared sets and evaluation classifiers are kept.',
    Check(bool, 'a folder'),
    IF_GIVEN,
  )
  image_size: int = option(
    8,
    'Pixels a side; 0: of 32, 64 and 128 the largest that fits the images.',
    Check(lambda n: 1 <= n <= 4096, '1..4096, or 0: as suits the data'),
  )
  channels: int = option(1, '3: RGB, 1: luma, 0: as the images are.', one_of(1, 3))
  class_list: str = option(
    'all',
    "'all', 'cmc' or 'kaggle' (ImageNet-100), or a file of classes.",
    Check(bool, "'all', 'cmc', 'kaggle' or a file"),
  )
  label_order: str = option(
    'sorted',
    "Labels number the classes by name ('sorted'), or as in the 'file'.",
    one_of('sorted', 'file'),
  )
  holdout: int = option(
    297,
    'Images held out of a source that has no held-out set itself; -1: a tenth of every class, up to '
    '5,000 in all, or what the source holds out.',
    at_least(-1),
  )
  split_seed: int = option(
    0,
    'Which ones are held out; the same share of every class.',
    Check(lambda n: 0 <= n < 2**32, '0..2^32 - 1'),
  )
  fingerprint: str = option(
    '', 'Of the set, where several have the same name and settings.', FINGERPRINT
  )
  flip: bool = option(False, 'Mirror half of the training images.')
  device_resident: bool = option(
    False, 'Keep all training examples in the memory of each device.', change=IF_GIVEN
  )
  verify: str = option(
    'full',
    "At start, digests of all data ('full') or of 256 MiB ('quick').",
    one_of('full', 'quick'),
    IF_GIVEN,
  )
  source: str = option(
    'digits',
    "For --mode=prepare: a folder or archive of images, ILSVRC2012's archives, a TFDS name, 'digits'.",
    change=IF_GIVEN,
  )
  max_bad_fraction: float = option(
    1e-3,
    'Unreadable files among all, above which preparation stops.',
    Check(lambda x: 0 <= x <= 1, '0 <= x <= 1'),
    IF_GIVEN,
  )
  workers: int = option(0, 'Decoding processes; 0: one a core.', NOT_NEGATIVE, IF_GIVEN)


@dataclasses.dataclass(frozen=True)
class Process:
  """What the network predicts."""

  prediction_type: str = option(
    'v',
    "What its output means; 'edm': preconditioned (arXiv:2206.00364).",
    one_of('eps', 'x0', 'v', 'velocity', 'edm'),
  )
  sigma_data: float = option(0.5, "Standard deviation of the data, for 'edm'.", POSITIVE)
  learned_variance: bool = option(
    False, 'The variance of the reverse steps too, in C more output channels.'
  )


@dataclasses.dataclass(frozen=True)
class Loss:
  """The denoising loss."""

  class_dropout: float = option(
    0.1, 'Share of labels hidden in training; guidance needs more than 0.', SHARE
  )
  weighting: str = option('none', 'Of the loss along t.', one_of('none', 'min_snr'))
  min_snr_gamma: float = option(5.0, "Of 'min_snr'.", POSITIVE)
  vlb_weight: float = option(
    0.001, 'Of the variational bound; only with process.learned_variance.', NOT_NEGATIVE
  )


@dataclasses.dataclass(frozen=True)
class Vae:
  """The KL autoencoder; the defaults are KL-f4."""

  channels: int = option(128, 'Of the first level, a multiple of 32.', COUNT)
  channel_mult: tuple[int, ...] = option(
    (1, 2, 4), 'Channels of each level in units of `channels`; halved between levels, here f = 4.'
  )
  num_res_blocks: int = option(2, 'Residual blocks a level.', COUNT)
  z_channels: int = option(3, 'Of encoder and decoder.', COUNT)
  embed_channels: int = option(3, 'Of the latents.', COUNT)
  checkpoint: str = option(
    '',
    'Latent systems only: a workdir that trained it (its newest step), a CompVis .ckpt or '
    '.safetensors, or a diffusers directory; its sizes are those above.',
    change=IF_GIVEN,
  )
  fingerprint: str = option(
    '', "Of its weights; '' takes whatever the checkpoint holds.", FINGERPRINT
  )
  scale: float = option(
    0.0,
    'Of latents for the backbone; 0: measured, so that their deviation is 1.',
    NOT_NEGATIVE,
  )
  shift: str = option(
    'none', "'channel' subtracts the measured mean of each channel.", one_of('none', 'channel')
  )
  batch_size: int = option(
    16, 'Images that a device encodes or decodes at once.', COUNT, BY_COMMAND
  )
  kl_weight: float = option(
    1e-6,
    'Training the autoencoder: of KL, a sum over the latents, against sums over the pixels.',
    NOT_NEGATIVE,
  )
  perceptual_weight: float = option(
    1.0, 'Training the autoencoder: of LPIPS; 0 leaves it out.', NOT_NEGATIVE
  )
  perceptual_weights: str = option(
    '', "Folder or file with VGG16's and LPIPS's weights.", change=BY_COMMAND
  )
  discriminator_start: int = option(50_000, 'Steps without the discriminator.', NOT_NEGATIVE)
  discriminator_weight: float = option(0.5, 'Of its loss.', NOT_NEGATIVE)
  discriminator_channels: int = option(
    64, 'Of its first layer.', Check(lambda n: n > 0 and n % 8 == 0, 'positive multiples of 8')
  )
  discriminator_layers: int = option(3, 'Its layers that halve the image.', COUNT)

  def sizes(self) -> dict[str, Any]:
    """The arguments of models.vae.AutoencoderKL."""
    names = ('channels', 'channel_mult', 'num_res_blocks', 'z_channels', 'embed_channels')
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW."""

  learning_rate: float = option(1e-4, 'After the warm-up.', POSITIVE)
  warmup_steps: int = option(100, 'Steps over which it rises linearly.', NOT_NEGATIVE)
  decay: str = option(
    'cosine', "'cosine' to 0 at train.num_steps, or 'constant'.", one_of('cosine', 'constant')
  )
  b1: float = option(0.9, 'Decay of the mean of gradients.', SHARE)
  b2: float = option(0.999, 'Decay of the mean of their squares.', SHARE)
  eps: float = option(1e-8, 'Added to the root of that.', POSITIVE)
  weight_decay: float = option(0.0, 'Of kernels and embeddings.', NOT_NEGATIVE)
  clip_norm: float = option(1.0, 'Of the global gradient; 0 does not clip.', NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Train:
  """How long, how large, and what is looked at meanwhile."""

  num_steps: int = option(1000, 'Optimizer steps; raise it to train on.', COUNT)
  batch_size: int = option(128, 'Images a step, over all devices and hosts.', COUNT, NEVER)
  ema_decay: float = option(0.9999, 'Of the averaged parameters, late in training.', SHARE)
  log_every_steps: int = option(50, 'A line of metrics.jsonl and TensorBoard.', COUNT)
  holdout_every_steps: int = option(500, 'Held-out loss of the averaged parameters.', COUNT)
  preview_every_steps: int = option(500, 'A grid of samples from fixed noise.', COUNT)
  preview_steps: int = option(
    50, 'Of the sampler, in previews: sample.num_steps if that is fewer.', COUNT
  )
  eval_every_steps: int = option(
    0, 'Metrics of config.eval on a few samples; 0: never.', NOT_NEGATIVE
  )
  eval_num_samples: int = option(
    500, "How many; the metrics say so: 'frechet_distance@500'.", at_least(2)
  )
  max_skipped: int = option(10, 'Non-finite steps in a row after which training stops.', COUNT)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """Which steps are kept."""

  every_steps: int = option(500, 'Steps between checkpoints.', COUNT)
  keep_newest: int = option(2, 'How many of the newest.', COUNT)
  keep_best: int = option(1, 'How many of the best.', NOT_NEGATIVE)
  best_metric: str = option(
    'holdout_loss',
    'A held-out metric of the task, measured at every checkpoint; or one of config.eval, as '
    "'frechet_distance', for which train.eval_every_steps divides checkpoint.every_steps.",
  )
  best_mode: str = option('min', 'Whether low or high is good.', one_of('min', 'max'))


@dataclasses.dataclass(frozen=True)
class Sample:
  """What --mode=sample makes."""

  name: str = option(
    '',
    "Folder below DIR/samples; '' is made from sampler, steps and scale.",
    Check(lambda n: '/' not in n and not n.startswith('.'), "a file name or ''"),
  )
  checkpoint: str = option(
    'latest',
    "'latest', 'best' or a step.",
    Check(lambda c: c in ('latest', 'best') or c.isdigit(), "'latest', 'best' or a step"),
  )
  num_samples: int = option(1000, 'How many images.', COUNT)
  batch_size: int = option(250, 'At most; does not change the images.', COUNT)
  num_steps: int = option(50, "Of the sampler, up to the schedule's num_timesteps.", COUNT)
  spacing: Choice = choice(
    'diffusion.spacings', 'trailing', 'How the times of the steps are spread.', key='spacing'
  )
  cfg_scale: float = option(1.0, 'Classifier-free guidance; 1: none.', NOT_NEGATIVE)
  guide_channels: int = option(
    0, 'How many of the first channels are guided; 0: all.', NOT_NEGATIVE
  )
  clip_x0: bool = option(False, 'To [-1, 1]; pixel space only.')
  labels: tuple[int | str, ...] = option(
    (), 'In turn, numbers or class names; (): i mod num_classes for sample i.'
  )
  label_counts: tuple[int, ...] = option(
    (), 'Or how many of each class, first all of class 0, and so on.'
  )
  seed: int = option(0, 'The noise of sample i depends on it and on i.', SEED)
  ema: bool = option(True, 'The averaged parameters, or the raw ones.')
  grid_columns: int = option(
    10, 'Of grid.png and the previews; rows are classes, 10 at most.', COUNT
  )
  gif_frames: int = option(25, 'Of denoising.gif.', at_least(2))
  export: tuple[str, ...] = option(
    (),
    "For other tools: 'npz' (ADM's samples.npz), 'png' (a folder of files).",
    Check(lambda e: set(e) <= {'npz', 'png'}, "of 'npz', 'png'"),
  )


@dataclasses.dataclass(frozen=True)
class Eval:
  """How samples are measured."""

  num_samples: int = option(
    0, '0: config.sample.num_samples.', Check(lambda n: n == 0 or n >= 2, '0 or >= 2')
  )
  num_seeds: int = option(
    1, 'Sample sets, of seeds sample.seed, +1, ...: mean and deviation.', COUNT
  )
  reference: str = option(
    'holdout',
    "'holdout', 'train', a folder of images, or ADM's .npz.",
    Check(bool, "'holdout', 'train', a folder or an .npz file"),
  )
  backend: str = option(
    'jax',
    "'torch_fidelity' is the reference itself, on the same images.",
    one_of('jax', 'torch_fidelity'),
  )
  batch_size: int = option(
    0, 'Images of a device at once; 0: 8 on CPU, 100 elsewhere.', NOT_NEGATIVE
  )
  inception_weights: str = option(
    '', "The FID network's .pth or .safetensors; '' finds it in torch's cache, or downloads it."
  )
  neighbours: int = option(
    0, 'Samples shown beside their nearest training images; 0: none.', NOT_NEGATIVE
  )
  features: Choice = choice(
    'evaluation.features',
    'dataset_classifier',
    "'inception' (FID as published), or for images that are not photographs 'dataset_classifier', "
    "'pixels'.",
  )
  metrics: tuple[Choice, ...] = choice(
    'evaluation', ('fid', 'inception_score', 'label_accuracy'), 'Which numbers.', key='metrics'
  )
  real_baseline: bool = option(True, 'Measure real training images against the reference too.')


@dataclasses.dataclass(frozen=True)
class Published:
  """What this run is in the tables of --mode=report, and what was published of it (0: nothing)."""

  name: str = option('', 'Its row.')
  fid: float = option(0.0, 'Published.', NOT_NEGATIVE)
  inception_score: float = option(0.0, 'Published.', NOT_NEGATIVE)
  inception_score_std: float = option(0.0, 'Published.', NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Report:
  """--mode=report over every run below the workdir."""

  num_classes: int = option(6, 'Rows of the animation, and classes of the panel, at most.', COUNT)
  num_snapshots: int = option(5, 'Of denoising, for each class of the panel.', at_least(2))


@dataclasses.dataclass(frozen=True)
class Bench:
  """--mode=bench."""

  subject: Choice = choice('benchmarks', 'data', 'What is measured.', key='name')
  repeats: int = option(5, 'Of every measurement, in turns; the median counts.', COUNT)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis; -1 is what is left."""

  data: int = option(-1, 'Copies of the state, each with a part of the batch.')
  fsdp: int = option(1, 'Parts of the state and of the batch.')
  tensor: int = option(1, 'Parts of the state; the batch is a copy.')
  rules: tuple[Any, ...] = option(
    (),
    "(regular expression, (axis or '' a dimension)): the first one found in an array's path decides "
    "how it is cut, for example ('mlp_in/kernel', ('', 'fsdp', 'tensor')). No rule: a copy each.",
  )


@dataclasses.dataclass(frozen=True)
class Logging:
  """Where metrics go beside metrics.jsonl and TensorBoard."""

  wandb_project: str = option('', "'' is off; otherwise needs `pip install wandb`.")


def section(cls: type, change: str = '') -> Any:
  """A field that is a section. change: of its fields that do not say themselves."""
  return dataclasses.field(default_factory=cls, metadata={'change': change})


@dataclasses.dataclass(frozen=True)
class Config:
  """The whole config."""

  task: str = option(
    'diffusion',
    'What is trained: a diffusion model, or the autoencoder of config.vae.',
    one_of('diffusion', 'autoencoder'),
    NEVER,
  )
  seed: int = option(0, 'Initialisation, data order and training noise depend on it.', SEED, NEVER)
  init_from: str = option(
    '',
    'Weights to begin with: a published DiT (.pt, .safetensors), a diffusers directory, or a workdir.',
    change=IF_GIVEN,
  )
  allow_pickle: bool = option(
    False, 'Read foreign weights from PyTorch pickles: only from whom you trust.', change=BY_COMMAND
  )
  space: str = option(
    'pixel',
    "What diffuses: images, or 'latent': what the autoencoder makes of them.",
    one_of('pixel', 'latent'),
    NEVER,
  )
  num_classes: int = option(
    10,
    'Of the data, 0 for an unconditional model; -1: as many as the data have.',
    Check(lambda n: n >= 0, '>= 0, or -1: as many as the data have'),
    NEVER,
  )
  dtype: str = option(
    'auto',
    "Of activations; 'auto' is float32 on CPU, else bfloat16.",
    one_of('auto', 'float32', 'bfloat16'),
    BY_COMMAND,
  )
  data: Data = section(Data, NEVER)
  schedule: Choice = choice('diffusion.schedules', 'cosine', 'The noise schedule.', NEVER)
  process: Process = section(Process, NEVER)
  time_sampling: Choice = choice(
    'diffusion.time_sampling', 'uniform', 'The distribution of training times.'
  )
  loss: Loss = section(Loss)
  vae: Vae = section(Vae, NEVER)
  model: Choice = choice('models', 'dit', 'The backbone.', NEVER)
  optimizer: Optimizer = section(Optimizer)
  train: Train = section(Train)
  checkpoint: Checkpoint = section(Checkpoint)
  sampler: Choice = choice(
    'diffusion.samplers', 'ddim', 'Takes the steps from noise to data.', SETTING
  )
  sample: Sample = section(Sample, SETTING)
  eval: Eval = section(Eval, SETTING)
  published: Published = section(Published, BY_COMMAND)
  report: Report = section(Report, SETTING)
  bench: Bench = section(Bench, BY_COMMAND)
  mesh: Mesh = section(Mesh, BY_COMMAND)
  logging: Logging = section(Logging, BY_COMMAND)
