"""Small experiments that many tests share."""

import pytest

from configs import quickstart
from diffusion_jax.experiment.checks import create
from diffusion_jax.stages import prepare


def tiny_mapping(tmp_path, **changes):
  """quickstart at the smallest sizes, with flattened overrides such as {'model.name': 'unet'}."""
  config = quickstart.get_config()
  tiny = {
    'data.dir': str(tmp_path / 'data'),
    'model.dit.hidden_size': 32,
    'model.dit.depth': 2,
    'model.dit.num_heads': 2,
    'model.unet.num_heads': 2,
    'model.unet.channel_mult': (1, 1),
    'optimizer.warmup_steps': 2,
    'train.num_steps': 4,
    'train.batch_size': 16,
    'train.log_every_steps': 2,
    'train.holdout_every_steps': 4,
    'train.preview_every_steps': 4,
    'checkpoint.every_steps': 2,
    'sample.num_samples': 20,
    'sample.batch_size': 16,
    'sample.num_steps': 3,
    'sample.grid_columns': 2,
    'sample.gif_frames': 3,
    'eval.features.dataset_classifier.num_steps': 5,
    'eval.features.dataset_classifier.channels': (8, 8),
  }
  config.update_from_flattened_dict({**tiny, **changes})
  return config.to_dict()


@pytest.fixture
def tiny(tmp_path):
  """tiny(**{'model.name': 'unet'}) -> Experiment, its data prepared."""

  def build(**changes):
    experiment = create(tiny_mapping(tmp_path, **changes))
    prepare.ensure(experiment, tmp_path / 'prepared')
    return experiment

  return build
