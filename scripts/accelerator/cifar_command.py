"""The process that prepares, trains or evaluates the run of cifar.py, as `python main.py` would.

Configs as files need ml-collections, which this machine may lack: here the fields of configs/cifar10.py stand
once more, and a test compares them.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.runtime import compile_cache, interruption

# Size -> fields of configs/cifar10.py and configs/cifar10.py:laptop that differ from the defaults.
DATA = {
  'data.name': 'cifar10',
  'data.image_size': 32,
  'data.channels': 3,
  'data.flip': True,
}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
  'full': {
    **DATA,
    'optimizer.learning_rate': 2e-4,
    'train.log_every_steps': 100,
  },
  'laptop': {
    **DATA,
    'model.dit.patch_size': 4,
    'model.dit.hidden_size': 192,
    'model.dit.depth': 6,
    'optimizer.learning_rate': 1e-3,
    'optimizer.warmup_steps': 20,
    'train.batch_size': 64,
    'train.ema_decay': 0.99,
    'sample.num_steps': 25,
    'sample.grid_columns': 6,
  },
}
# What minutes instead of steps ask for: more frequent looks, and distances by a classifier that is made here.
CHANGES: Mapping[str, Mapping[str, Any]] = {
  'full': {
    'optimizer.warmup_steps': 1000,
    'train.holdout_every_steps': 2500,
    'train.preview_every_steps': 2500,
    'train.eval_every_steps': 5000,
    'checkpoint.every_steps': 2500,
    'sample.num_samples': 5000,
    'sample.batch_size': 500,
    'eval.features.dataset_classifier.num_steps': 3000,
    'eval.features.dataset_classifier.channels': (64, 128, 256),
  },
  'laptop': {
    'train.log_every_steps': 10,
    'train.holdout_every_steps': 200,
    'train.preview_every_steps': 100,
    'train.eval_every_steps': 0,
    'checkpoint.every_steps': 50,
    'sample.num_samples': 200,
    'sample.batch_size': 100,
  },
}
TINY = {
  'model.dit.hidden_size': 32,
  'model.dit.depth': 2,
  'model.dit.num_heads': 2,
  'train.batch_size': 16,
  'train.log_every_steps': 5,
  'train.holdout_every_steps': 20,
  'train.preview_every_steps': 20,
  'train.preview_steps': 3,
  'train.eval_every_steps': 20,
  'train.eval_num_samples': 20,
  'checkpoint.every_steps': 20,
  'sample.num_samples': 20,
  'sample.batch_size': 20,
  'sample.num_steps': 3,
  'sample.grid_columns': 2,
  'eval.features.dataset_classifier.num_steps': 5,
  'eval.features.dataset_classifier.channels': (8, 8),
}
ENDLESS = 1_000_000  # Steps: the time decides.


def values(size: str, name: str, archive: str, workdir: Path) -> dict[str, Any]:
  """The fields of the run: path -> value. name: of CONFIGS."""
  return {
    **CONFIGS[name],
    **CHANGES[name],
    **(TINY if size == 'tiny' else {}),
    'data.source': archive,
    'data.dir': str(workdir / 'data'),
    'data.holdout': -1,  # The test set of the archive, or a tenth where it has none.
    'optimizer.decay': 'constant',
    'train.num_steps': ENDLESS,
    'eval.features.name': 'dataset_classifier',
    'eval.metrics': ('fid', 'inception_score', 'label_accuracy'),
  }


def main(
  mode: str, size: str, backend: str, archive: str, workdir: str, given: Mapping[str, Any]
) -> None:
  """Runs a mode and ends the process with its exit code. backend: JAX's here. given: further fields."""
  interruption.answer()
  compile_cache.use()
  from diffusion_jax.command import run_mode
  from diffusion_jax.config.fields import defaults, schema, updated
  from diffusion_jax.config.schema import Config
  from diffusion_jax.errors import Stop

  name = 'laptop' if size == 'tiny' or backend == 'cpu' else 'full'
  fields = values(size, name, archive, Path(workdir)) | dict(given)
  try:
    run_mode(mode, updated(Config, defaults(schema(Config)), fields), fields, workdir)
  except Stop as reason:
    print(reason, file=sys.stderr)
    sys.exit(reason.exit_code)
