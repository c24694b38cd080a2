"""--mode=train of the autoencoder, through the same door as the command line."""

import json

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from tests.conftest import tiny_mapping
from tests.runtime.test_checkpoint import assert_same

VAE = {
  'objective.name': 'autoencoder',
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'objective.autoencoder.perceptual_weight': 0.0,
  'objective.autoencoder.discriminator_channels': 8,
  'objective.autoencoder.discriminator_layers': 1,
  'objective.autoencoder.discriminator_start': 2,
  'checkpoint.best_metric': 'holdout_psnr',
  'checkpoint.best_mode': 'max',
  'optimizer.decay': 'constant',
  'train.log_every_steps': 1,
}


def run(mode, folder, tmp_path, **changes):
  changes = {**VAE, **changes}
  run_mode(mode, tiny_mapping(tmp_path, **changes), changes, folder, as_json=False)


def lines_of(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def state_of(folder, tmp_path):
  experiment = create(tiny_mapping(tmp_path, **VAE))
  checkpoints = open_checkpoints(experiment, folder, read_only=True)
  restored = checkpoints.restore(experiment.abstract_state)
  checkpoints.close()
  return restored.state


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  tmp_path = tmp_path_factory.mktemp('vae')
  run('train', tmp_path / 'run', tmp_path)
  return tmp_path


def test_it_trains_measures_and_draws(trained):
  folder = trained / 'run'
  lines = lines_of(folder)
  steps = [line for line in lines if 'loss' in line]
  assert [line['step'] for line in steps] == [1, 2, 3, 4]
  # The discriminator begins after step 2.
  assert ['discriminator_loss' in line for line in steps] == [False, False, True, True]
  assert ['adaptive_weight' in line for line in steps] == [False, False, True, True]
  held_out = [line for line in lines if 'loss' not in line]
  assert [line['step'] for line in held_out] == [2, 4]
  assert all(
    np.isfinite(line[name]) for line in held_out for name in ('holdout_psnr', 'holdout_kl')
  )
  assert all(
    set(line) & set(steps[-1]) == {'step'} for line in held_out
  )  # Each name is of one kind.
  picture = Image.open(folder / 'previews' / 'step_00000004.png')
  assert picture.width >= 10 * 48 and picture.height >= 4 * 48  # Five pairs a row.


@pytest.mark.slow
@pytest.mark.unoptimised  # As the run it is compared with, bit for bit.
def test_interrupted_equals_uninterrupted_with_the_discriminator(trained, tmp_path):
  """Stopped after step 2, before the discriminator begins, and gone on with."""
  run('train', tmp_path / 'parts', tmp_path, **{'train.num_steps': 2})
  run('train', tmp_path / 'parts', tmp_path)
  assert_same(state_of(tmp_path / 'parts', tmp_path), state_of(trained / 'run', trained))


def test_an_autoencoder_has_no_samples(trained):
  with pytest.raises(InputError, match='trains an autoencoder, which has no samples'):
    run('sample', trained / 'run', trained)


def test_reconstructions_are_evaluated(trained):
  """All held-out images, encoded and decoded by the averaged parameters."""
  flags = {'eval.features.name': 'pixels', 'eval.metrics': ('fid',), 'eval.real_baseline': False}
  run('evaluate', trained / 'run', trained, **flags)
  result = json.loads((trained / 'run' / 'eval' / 'reconstruction.json').read_text())
  assert result['protocol']['num_samples'] == result['protocol']['reference_size'] == 297
  assert result['samples'] == {'step': 4, 'average': 'ema'}
  lines = map(json.loads, (trained / 'run' / 'metrics.jsonl').read_text().splitlines())
  (measured,) = [
    line['holdout_psnr'] for line in lines if line['step'] == 4 and 'holdout_psnr' in line
  ]
  assert result['metrics']['psnr'] == pytest.approx(measured, abs=0.05)  # There before rounding.
  assert result['metrics']['frechet_distance'] > 1
  assert Image.open(trained / 'run' / 'eval' / 'reconstruction-4.png').width > 8 * 48


@pytest.mark.slow
@pytest.mark.unoptimised
def test_reconstructions_are_evaluated_during_training(tmp_path):
  flags = {
    **{'eval.features.name': 'pixels', 'eval.metrics': ('fid',), 'train.num_steps': 2},
    **{'train.eval_every_steps': 2, 'train.eval_num_samples': 30},
  }
  run('train', tmp_path / 'run', tmp_path, **flags)
  lines = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
  (value,) = [line['frechet_distance@30'] for line in lines if 'frechet_distance@30' in line]
  assert np.isfinite(value) and value > 1


def test_describe(trained, capsys):
  mapping = tiny_mapping(trained, **VAE)
  run_mode('describe', mapping, VAE, None, as_json=True)
  facts = json.loads(capsys.readouterr().out)
  assert (
    facts['model'] == 'autoencoder' and facts['parameters'] > 0 and facts['flops_per_image'] > 0
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'objective.autoencoder.perceptual_weight': 1.0},
      r'perceptual_weights is empty.*perceptual_weight=0',
    ),
    ({'vae.channels': 40}, r'config\.vae\.channels: got 40, allowed multiples of .* 32'),
    ({'vae.channel_mult': (1, 1, 1, 1, 1)}, r'image_size: got 8, allowed multiples of 16'),
    (
      {'checkpoint.best_metric': 'holdout_loss'},
      r"best_metric: got 'holdout_loss', .*holdout_psnr",
    ),
    ({'checkpoint.best_metric': 'psnr'}, r"best_metric: got 'psnr', .*holdout_psnr"),
  ],
)
def test_what_cannot_be_trained(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    run('train', tmp_path / 'run', tmp_path, **changes)
  assert not (tmp_path / 'run' / 'config.json').exists()
