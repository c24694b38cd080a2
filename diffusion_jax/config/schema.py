"""The sections of a config: every field with its default, comment and check.

Options of a plug-in (a model, a schedule, a sampler, a feature network, a metric, a benchmark) stand in
its own file. --mode=describe --fields prints them all.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

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
from diffusion_jax.config.plugins import Choice, choice, options_from

NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_-]*')
FINGERPRINT = Check(lambda f: not f or len(f) == 16, "16 hexadecimal digits or ''")
SPLITS = ('holdout', 'train')  # Parts of a prepared set.


@dataclasses.dataclass(frozen=True)
class Data:
  """The prepared data set, which --mode=prepare makes once for all runs."""

  name: str = option(
    'digits',
    "Name of the prepared set; its folder is DIR/NAME-SIZE-FINGERPRINT. '' names it after "
    'the class list or the source.',
    Check(lambda n: bool(NAME.fullmatch(n)), 'letters, digits, _ and -'),
    from_data='',
  )
  dir: str = option(
    'data',
    'Folder of prepared sets and evaluation classifiers.',
    Check(bool, 'a folder'),
    IF_GIVEN,
    common=True,
  )
  image_size: int = option(
    8,
    'Side of the images in pixels; 0 takes the largest of 32, 64 and 128 that fits the source.',
    Check(lambda n: 1 <= n <= 4096, '1..4096, or 0: as suits the data'),
    from_data=0,
  )
  channels: int = option(
    1,
    'Channels of the images: 3 is RGB, 1 is luma, 0 takes what the source has.',
    one_of(1, 3),
    from_data=0,
  )
  class_list: str = option(
    'all',
    "Classes to use: 'all', 'cmc' or 'kaggle' (ImageNet-100), or a file that lists them.",
    Check(bool, "'all', 'cmc', 'kaggle' or a file"),
  )
  label_order: str = option(
    'sorted',
    "Order in which labels number the classes: by name ('sorted'), or as the class list "
    "has them ('file').",
    one_of('sorted', 'file'),
  )
  holdout: int = option(
    297,
    'Images to hold out of a source that has no held-out set of its own; -1 takes that '
    'set, or else a tenth of every class, at most 5,000 in all.',
    at_least(-1),
  )
  split_seed: int = option(
    0,
    'Seed that chooses the held-out images; every class gives the same share.',
    Check(lambda n: 0 <= n < 2**32, '0..2^32 - 1'),
  )
  fingerprint: str = option(
    '',
    'Fingerprint of the prepared set, where several have the same name and settings.',
    FINGERPRINT,
  )
  flip: bool = option(False, 'Mirror half of the training images.')
  device_resident: bool = option(
    False, 'Keep all training examples in the memory of each device.', change=IF_GIVEN
  )
  loader: str = option(
    'auto',
    "Reader that delivers batches: tf.data ('tf'), 'threads', or 'auto', which is tf.data where "
    'TensorFlow is installed. The batches are the same.',
    one_of('auto', 'tf', 'threads'),
    BY_COMMAND,
  )
  verify: str = option(
    'full',
    "Data whose digests are checked at the start: all ('full') or 256 MiB ('quick').",
    one_of('full', 'quick'),
    IF_GIVEN,
  )
  source: str = option(
    'digits',
    'Source for --mode=prepare: a folder or archive of images, the archives of '
    "ILSVRC2012, a TFDS name, or 'digits'.",
    change=IF_GIVEN,
    common=True,
  )
  max_bad_fraction: float = option(
    1e-3,
    'Share of unreadable files above which preparation stops.',
    Check(lambda x: 0 <= x <= 1, '0 <= x <= 1'),
    IF_GIVEN,
  )
  workers: int = option(
    0, 'Decoding processes; 0 starts one for each core.', NOT_NEGATIVE, IF_GIVEN
  )


@dataclasses.dataclass(frozen=True)
class Process:
  """The meaning of the network's input and output."""

  prediction_type: str = option(
    'v',
    "Meaning of the network's output; 'edm' also preconditions its input (arXiv:2206.00364).",
    one_of('eps', 'x0', 'v', 'velocity', 'edm'),
  )
  sigma_data: float = option(0.5, "Standard deviation of the data, for 'edm'.", POSITIVE)
  learned_variance: bool = option(
    False, 'Predict the variance of the reverse steps too, in C more output channels.'
  )


@dataclasses.dataclass(frozen=True)
class Vae:
  """The KL autoencoder; the defaults are KL-f4."""

  sizes: Mapping[str, Any] = options_from('models.vae', 'AutoencoderKL')
  checkpoint: str = option(
    '',
    'Trained autoencoder of a latent system: a work directory (its newest step is read), '
    'a CompVis .ckpt or .safetensors file, or a diffusers directory. It must have the '
    'sizes above.',
    change=IF_GIVEN,
  )
  fingerprint: str = option(
    '',
    "Fingerprint of the autoencoder's weights; '' accepts whatever the checkpoint holds.",
    FINGERPRINT,
  )
  scale: float = option(
    0.0,
    'Factor that latents are multiplied by for the backbone; 0 measures it, so that their '
    'standard deviation is 1.',
    NOT_NEGATIVE,
  )
  shift: str = option(
    'none',
    "'channel' subtracts the measured mean of each channel of the latents.",
    one_of('none', 'channel'),
  )
  batch_size: int = option(
    16, 'Images that a device encodes or decodes at a time.', COUNT, BY_COMMAND
  )


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW."""

  learning_rate: float = option(1e-4, 'Learning rate after the warm-up.', POSITIVE, common=True)
  warmup_steps: int = option(
    100, 'Steps over which the learning rate rises linearly.', NOT_NEGATIVE
  )
  decay: str = option(
    'cosine',
    "Course of the learning rate: 'cosine' falls to 0 at train.num_steps, 'constant' stays.",
    one_of('cosine', 'constant'),
  )
  b1: float = option(0.9, 'Decay of the running mean of gradients.', SHARE)
  b2: float = option(0.999, 'Decay of the running mean of squared gradients.', SHARE)
  eps: float = option(
    1e-8, 'Number added to the root of the mean square, which the update is divided by.', POSITIVE
  )
  weight_decay: float = option(
    0.0, 'Weight decay of kernels and embeddings; nothing else decays.', NOT_NEGATIVE
  )
  clip_norm: float = option(1.0, 'Largest global gradient norm; 0 does not clip.', NOT_NEGATIVE)


@dataclasses.dataclass(frozen=True)
class Train:
  """Length and batch size of training, and how often it reports."""

  num_steps: int = option(1000, 'Optimizer steps; raise it to train on.', COUNT, common=True)
  batch_size: int = option(
    128, 'Images per step, over all devices and hosts.', COUNT, NEVER, common=True
  )
  ema_decay: float = option(
    0.9999, 'Largest decay of the averaged parameters; early updates use less.', SHARE
  )
  log_every_steps: int = option(50, 'Steps between lines of metrics.jsonl and TensorBoard.', COUNT)
  holdout_every_steps: int = option(
    500, 'Steps between measurements of the held-out loss, with the averaged parameters.', COUNT
  )
  preview_every_steps: int = option(
    500, 'Steps between previews, each a grid of samples from the same noise.', COUNT
  )
  preview_steps: int = option(
    50, 'Sampler steps of a preview, or sample.num_steps if that is fewer.', COUNT
  )
  eval_every_steps: int = option(
    0,
    'Steps between evaluations of a few samples by the metrics of config.eval; 0: never.',
    NOT_NEGATIVE,
  )
  eval_num_samples: int = option(
    500,
    'Samples of such an evaluation; the names of its metrics carry the number: '
    "'frechet_distance@500'.",
    at_least(2),
  )
  accumulate: int = option(
    1, 'Passes that a batch is cut into: less memory, the same update.', COUNT, IF_GIVEN
  )
  steps_per_dispatch: int = option(
    1,
    'Steps that the devices take at a time, for models so small that starting a program takes long; divides '
    'every *_every_steps.',
    COUNT,
    IF_GIVEN,
  )
  max_skipped: int = option(
    10, 'Consecutive steps without an update after which training stops.', COUNT
  )
  skip_grad_norm_above: float = option(
    0.0, 'Gradient norm above which a step changes nothing; 0: any is taken.', NOT_NEGATIVE
  )
  watchdog_seconds: float = option(
    1800.0,
    'Seconds without a step after which the process ends (exit code 70); 0 waits for ever.',
    NOT_NEGATIVE,
    BY_COMMAND,
  )
  profile_steps: tuple[int, ...] = option(
    (),
    'First and last step of a trace in DIR/profile, which TensorBoard and Perfetto open; (): none.',
    Check(lambda x: not x or (len(x) == 2 and 1 <= x[0] <= x[1]), '(), or (a, b) with 1 <= a <= b'),
    BY_COMMAND,
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """How often checkpoints are written, and which are kept."""

  every_steps: int = option(500, 'Steps between checkpoints.', COUNT)
  keep_newest: int = option(2, 'Newest checkpoints to keep.', COUNT)
  keep_best: int = option(1, 'Best checkpoints to keep.', NOT_NEGATIVE)
  best_metric: str = option(
    'holdout_loss',
    'Metric that ranks checkpoints: a held-out metric of the objective, or one of config.eval '
    "such as 'frechet_distance', if train.eval_every_steps divides "
    'checkpoint.every_steps.',
  )
  best_mode: str = option(
    'min', "Whether the lowest ('min') or the highest ('max') value is best.", one_of('min', 'max')
  )


@dataclasses.dataclass(frozen=True)
class Guidance:
  """How guidance by sample.cfg_scale works; the defaults are plain classifier-free guidance."""

  options: Mapping[str, Any] = options_from('diffusion.guidance', 'GuidanceOptions')
  workdir: str = option(
    '',
    'Autoguidance: the work directory of a worse network for the same images, which guides instead of the '
    "null label; '': none, or this run's own if `checkpoint` is given.",
  )
  checkpoint: str = option(
    '',
    "Autoguidance: the checkpoint that guides; '': the latest of `workdir`.",
    Check(lambda c: c in ('', 'latest', 'best') or c.isdigit(), "'', 'latest', 'best' or a step"),
  )


@dataclasses.dataclass(frozen=True)
class Cache:
  """Which steps of sampling run the blocks of a DiT."""

  options: Mapping[str, Any] = options_from('diffusion.caching', 'Caching')


def section(cls: type, change: str = '') -> Any:
  """A field that is a section. change: of its fields that do not say themselves."""
  return dataclasses.field(default_factory=cls, metadata={'change': change})


@dataclasses.dataclass(frozen=True)
class Sample:
  """Settings of --mode=sample, of previews and of the samples that are evaluated."""

  name: str = option(
    '',
    "Folder in DIR/samples; '' names it after sampler, steps and scale.",
    Check(lambda n: '/' not in n and not n.startswith('.'), "a file name or ''"),
  )
  checkpoint: str = option(
    'latest',
    'Checkpoint to sample from.',
    Check(lambda c: c in ('latest', 'best') or c.isdigit(), "'latest', 'best' or a step"),
  )
  preset: str = option(
    '',
    "Sampler and steps by name, 'fast', 'balanced' or 'best', where no flag gives them; '': as they are.",
    common=True,
  )
  num_samples: int = option(1000, 'Number of images.', COUNT, common=True)
  batch_size: int = option(
    250,
    'Largest batch; 0: as many as fit into the memory of the devices. The images do not depend on it.',
    NOT_NEGATIVE,
  )
  num_steps: int = option(
    50,
    'Sampler steps; spacings that stride a table allow up to its num_timesteps.',
    COUNT,
    common=True,
  )
  spacing: Choice = choice(
    'diffusion.spacings', 'trailing', 'Spacing of the sampling times.', key='spacing'
  )
  cfg_scale: float = option(
    1.0, 'Scale of classifier-free guidance; 1 is none.', NOT_NEGATIVE, common=True
  )
  guide_channels: int = option(
    0, 'Guide only this many of the first channels; 0 guides all.', NOT_NEGATIVE
  )
  invert: int = option(
    0,
    'Held-out images to turn into noise, to sample from it and to interpolate, in inversion.png beside '
    'the set.',
    NOT_NEGATIVE,
  )
  guidance: Guidance = section(Guidance)
  cache: Cache = section(Cache)
  clip_x0: bool = option(False, 'Clip predictions of x0 to [-1, 1]; only in pixel space.')
  labels: tuple[int | str, ...] = option(
    (),
    'Labels to sample in turn, as numbers or class names; () gives sample i the label i '
    'mod num_classes.',
  )
  label_counts: tuple[int, ...] = option(
    (), 'Number of samples of each class instead, all of class 0 first; () uses `labels`.'
  )
  seed: int = option(0, 'Seed; the noise of sample i depends on it and on i alone.', SEED)
  average: str = option('ema', "Average of the parameters to sample with; '' takes the raw ones.")
  grid_columns: int = option(
    10, 'Columns of grid.png and of previews; rows are classes, 10 at most.', COUNT
  )
  gif_frames: int = option(25, 'Frames of denoising.gif.', at_least(2))
  export: tuple[str, ...] = option(
    (),
    "Copies for other tools: 'npz' (samples.npz, as ADM writes it), 'png' (a folder of files).",
    Check(lambda e: set(e) <= {'npz', 'png'}, "of 'npz', 'png'"),
  )


@dataclasses.dataclass(frozen=True)
class Eval:
  """Settings of --mode=evaluate and of evaluation while training."""

  num_samples: int = option(
    0,
    'Samples to evaluate; 0 takes config.sample.num_samples.',
    Check(lambda n: n == 0 or n >= 2, '0 or >= 2'),
  )
  num_seeds: int = option(
    1,
    'Sample sets, with the seeds sample.seed, sample.seed + 1, ...; results are mean and '
    'standard deviation.',
    COUNT,
  )
  reference: str = option(
    'holdout',
    "Images to compare with; an .npz file is one of ADM's reference batches.",
    Check(bool, "'holdout', 'train', a folder or an .npz file"),
  )
  backend: str = option(
    'jax',
    "'torch_fidelity' computes the metrics with that package, on the same images.",
    one_of('jax', 'torch_fidelity'),
  )
  batch_size: int = option(
    0, 'Images that a device takes at a time; 0 is 8 on CPU and 100 elsewhere.', NOT_NEGATIVE
  )
  inception_weights: str = option(
    '',
    "Weights of the FID network, .pth or .safetensors; '' finds them in torch's cache or "
    'downloads them.',
  )
  neighbours: int = option(
    0, 'Samples to show beside their nearest training images; 0 shows none.', NOT_NEGATIVE
  )
  nll_num_images: int = option(
    0,
    'Held-out images whose negative log-likelihood in bits a dimension, nll, is computed by the '
    'probability flow; 0: none. Only in pixel space.',
    NOT_NEGATIVE,
  )
  nll_num_steps: int = option(
    100, 'Steps of that flow, of two evaluations with a gradient each.', COUNT
  )
  features: Choice = choice(
    'evaluation.features',
    'dataset_classifier',
    "The feature network: 'inception' gives FID as published, 'dataset_classifier' and "
    "'pixels' suit images that are no photographs.",
  )
  metrics: tuple[Choice, ...] = choice(
    'evaluation', ('fid', 'inception_score', 'label_accuracy'), 'Metrics to compute.', key='metrics'
  )
  real_baseline: bool = option(True, 'Measure real training images against the reference too.')


@dataclasses.dataclass(frozen=True)
class Published:
  """This run's row in the tables of --mode=report, with published numbers beside it."""

  name: str = option('', "Name of its row; '' takes the path of its work directory.")
  fid: float = option(0.0, 'Published FID; 0 if there is none.', NOT_NEGATIVE)
  inception_score: float = option(
    0.0, 'Published inception score; 0 if there is none.', NOT_NEGATIVE
  )
  inception_score_std: float = option(
    0.0, 'Its standard deviation over splits; 0 if there is none.', NOT_NEGATIVE
  )


@dataclasses.dataclass(frozen=True)
class Report:
  """Settings of --mode=report, which covers every run below the work directory."""

  num_classes: int = option(
    6, 'Largest number of classes in the animation and in the panel.', COUNT
  )
  num_snapshots: int = option(5, 'Snapshots of denoising for each class of the panel.', at_least(2))


@dataclasses.dataclass(frozen=True)
class Bench:
  """Settings of --mode=bench."""

  subject: Choice = choice('benchmarks', 'data', 'The benchmark.', key='name')
  repeats: int = option(5, 'Repeats of every measurement, in turns; the median counts.', COUNT)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices along each axis of the mesh; -1 takes those that are left, 0 takes what the preset says."""

  preset: str = option(
    'replicated',
    "How the state is cut: 'replicated' not at all, 'fsdp' over all devices, 'fsdp_tensor' over pairs of "
    'heads and channels too.',
    one_of('replicated', 'fsdp', 'fsdp_tensor'),
  )
  data: int = option(0, 'Copies of the state, each of which gets a part of the batch.')
  fsdp: int = option(0, 'Parts into which state and batch are cut.')
  tensor: int = option(0, 'Parts into which the state is cut, each with the whole batch.')
  rules: tuple[Any, ...] = option(
    (),
    "Pairs of a regular expression and, for each dimension, an axis or ''. The first "
    "expression found in an array's path decides how the array is cut, for example "
    "('mlp_in/kernel', ('', 'fsdp', 'tensor')). The preset cuts an array without a rule.",
  )


@dataclasses.dataclass(frozen=True)
class Logging:
  """Destinations of metrics besides metrics.jsonl and TensorBoard."""

  wandb_project: str = option(
    '', "Project of Weights & Biases, which needs `pip install wandb`; '' turns it off."
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """The whole config."""

  seed: int = option(0, 'Seed of initialisation, data order and training noise.', SEED, NEVER)
  init_from: str = option(
    '',
    'Weights to start from: a published DiT (.pt, .safetensors), a diffusers directory, '
    'or a work directory.',
    change=IF_GIVEN,
    common=True,
  )
  allow_pickle: bool = option(
    False,
    'Read foreign weights from PyTorch pickles, which can run code: only from sources '
    'that you trust.',
    change=BY_COMMAND,
  )
  space: str = option(
    'pixel',
    "Where diffusion takes place: on images ('pixel') or on the latents of the "
    "autoencoder ('latent').",
    one_of('pixel', 'latent'),
    NEVER,
  )
  num_classes: int = option(
    10,
    'Number of classes; 0 trains an unconditional model, -1 takes the number that the data have.',
    Check(lambda n: n >= 0, '>= 0, or -1: as many as the data have'),
    NEVER,
    common=True,
    from_data=-1,
  )
  dtype: str = option(
    'auto',
    "Type of activations; 'auto' is float32 on CPU and bfloat16 elsewhere.",
    one_of('auto', 'float32', 'bfloat16'),
    BY_COMMAND,
    common=True,
  )
  data: Data = section(Data, NEVER)
  schedule: Choice = choice('diffusion.schedules', 'cosine', 'The noise schedule.', NEVER)
  process: Process = section(Process, NEVER)
  time_sampling: Choice = choice(
    'diffusion.time_sampling', 'uniform', 'The distribution of training times.'
  )
  objective: Choice = choice('objectives', 'denoising', 'The training objective.', NEVER)
  vae: Vae = section(Vae, NEVER)
  model: Choice = choice('models', 'dit', 'The backbone.', NEVER, common=True)
  optimizer: Optimizer = section(Optimizer)
  train: Train = section(Train)
  checkpoint: Checkpoint = section(Checkpoint)
  sampler: Choice = choice(
    'diffusion.samplers',
    'ddim',
    'The sampler, which steps from noise to data.',
    SETTING,
    common=True,
  )
  sample: Sample = section(Sample, SETTING)
  eval: Eval = section(Eval, SETTING)
  published: Published = section(Published, BY_COMMAND)
  report: Report = section(Report, SETTING)
  bench: Bench = section(Bench, BY_COMMAND)
  mesh: Mesh = section(Mesh, BY_COMMAND)
  logging: Logging = section(Logging, BY_COMMAND)
