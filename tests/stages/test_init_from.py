"""Training and sampling from config.init_from, through the same door as the command line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.pretrained import dit
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.stages import train
from tests.conftest import tiny_mapping
from tests.experiment.test_initial import (
  RECORDED,
  assert_same,
  make,
  random_params,
  write_diffusers,
  write_published,
)
from tests.stages.test_latent import write_autoencoder
from tests.support.samples import load_samples

STEADY = {'optimizer.decay': 'constant', 'train.holdout_every_steps': 100}


def run(mode, folder, tmp_path, path='', **changes):
  """changes are the flags of the command line."""
  flags = {**changes, **({'init_from': str(path)} if path else {})}
  run_mode(mode, tiny_mapping(tmp_path, **flags), flags, folder, as_json=False)


def state_of(tmp_path, folder, step=None, **changes):
  experiment = make(tmp_path, **changes)
  checkpoints = open_checkpoints(experiment, folder, read_only=True)
  restored = checkpoints.restore(experiment.abstract_state, step)
  checkpoints.close()
  return restored.state


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A published DiT of random weights, and its parameters."""
  tmp_path = tmp_path_factory.mktemp('weights')
  params = random_params(make(tmp_path))
  return write_published(tmp_path / 'dit.safetensors', params), params


@pytest.mark.slow
@pytest.mark.unoptimised
def test_training_goes_on_from_given_weights_and_resumes_without_them(tmp_path, weights, capsys):
  path, params = weights
  run('train', tmp_path / 'whole', tmp_path, path, **STEADY)
  assert f'weights of {path}\n' in capsys.readouterr().out
  first = state_of(tmp_path, tmp_path / 'whole', 2)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params['model'], params)
  assert all(0 < x < 0.1 for x in jax.tree.leaves(moved))  # Two steps away, and no further.
  run('train', tmp_path / 'parts', tmp_path, path, **STEADY, **{'train.num_steps': 2})
  capsys.readouterr()
  run('train', tmp_path / 'parts', tmp_path, tmp_path / 'gone.safetensors', **STEADY)
  out = capsys.readouterr().out
  assert 'resumed at step 2' in out and 'gone.safetensors is not read' in out
  whole, parts = (state_of(tmp_path, tmp_path / name) for name in ('whole', 'parts'))
  assert int(whole.step) == 4
  assert_same(parts, whole)
  assert json.loads((tmp_path / 'parts' / 'config.json').read_text())['init_from'] == str(path)


def test_what_is_wrong_is_told_before_data_are_prepared(tmp_path, weights):
  path, _ = weights
  cut = tmp_path / 'cut.safetensors'
  cut.write_bytes(path.read_bytes()[:-100])
  for given, changes, error in (
    (tmp_path / 'gone', {}, InputError),
    (path, {'model.dit.depth': 3}, InputError),
    (cut, {}, DamagedError),
  ):
    for mode in ('train', 'sample'):
      with pytest.raises(error):
        run(mode, tmp_path / 'run', tmp_path, given, **changes)
  assert not (tmp_path / 'data').exists() and not list((tmp_path / 'run').iterdir())


def test_samples_without_training_are_those_of_the_published_model(tmp_path, weights, capsys):
  path, _ = weights
  folder = tmp_path / 'run'
  with pytest.raises(InputError, match=r'no checkpoint here.*or give weights: --config\.init_from'):
    run('sample', folder, tmp_path)
  run('sample', folder, tmp_path, path, **{'sample.cfg_scale': 2.0})
  assert f'nothing was trained in {folder}' in capsys.readouterr().out
  assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'data.json', 'samples']
  made, labels = load_samples(folder / 'samples' / 'ddim3-cfg2', 20)
  experiment = make(tmp_path, **{'sample.cfg_scale': 2.0})
  module, params = dit.load(path, num_heads=2)

  @jax.jit
  def expected(params):
    def network(x, time, y):
      return module.apply({'params': params}, x, time, y)

    return experiment.generator()(network, np.arange(20, dtype=np.uint32), labels)[0]

  levels = np.clip(np.floor(127.5 * np.asarray(expected(params)) + 128), 0, 255)
  assert np.abs(made.astype(float) - levels).max() <= 1 and made.std() > 20
  assert Image.open(folder / 'samples' / 'ddim3-cfg2' / 'grid.png').width > 0
  assert (folder / 'samples' / 'ddim3-cfg2' / 'denoising.gif').exists()
  meta = json.loads((folder / 'samples' / 'ddim3-cfg2' / 'meta.json').read_text())
  assert meta['identity']['step'] == 0 and meta['identity']['data'] == ''
  assert json.loads((folder / 'data.json').read_text())['label_names'][9] == 'class 9'
  assert not (tmp_path / 'data').exists()
  with pytest.raises(InputError, match=r"--config\.init_from: got 'other', but .* began with"):
    run('sample', folder, tmp_path, 'other', **{'sample.name': 'other'})
  # Again without the flag: from config.json, as nothing else was kept.
  run('sample', folder, tmp_path, **{'sample.cfg_scale': 2.0, 'sample.name': 'again'})
  np.testing.assert_array_equal(load_samples(folder / 'samples' / 'again', 20)[0], made)
  alone = stored.load(folder)  # As --workdir without --config.
  assert alone['init_from'] == str(path)
  capsys.readouterr()
  run_mode('sample', alone, {}, folder, as_json=False)
  assert '0 of 20 samples to make' in capsys.readouterr().out
  with pytest.raises(
    InputError, match=r"config\.sample\.checkpoint: got '3', allowed 'latest' or '0'"
  ):
    run('sample', folder, tmp_path, **{'sample.checkpoint': '3', 'sample.name': 'three'})


def test_sampling_makes_no_state_to_train_with(tmp_path, weights, monkeypatch):
  """Neither raw parameters beside the averaged ones, nor the optimizer's, nor a checkpoint."""

  def refuse(*args, **kwargs):
    raise AssertionError('a training state was made')

  monkeypatch.setattr(Checkpoints, 'save', refuse)
  monkeypatch.setattr(train, 'new_state', refuse)
  run('sample', tmp_path / 'run', tmp_path, weights[0], **{'sample.num_samples': 2})
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.slow
@pytest.mark.unoptimised
def test_evaluating_needs_data_and_training_goes_on_from_step_0(tmp_path, weights, capsys):
  path, _ = weights
  changes = {'sample.num_samples': 4, 'eval.features.name': 'pixels', 'eval.metrics': ('fid',)}
  with pytest.raises(InputError, match=r"no prepared data 'digits', 8 px.*--mode=prepare"):
    run('evaluate', tmp_path / 'run', tmp_path, path, **changes)
  run('sample', tmp_path / 'run', tmp_path, **changes)
  run_mode('describe', tiny_mapping(tmp_path), {}, tmp_path / 'run', as_json=False)
  assert 'not prepared yet' in capsys.readouterr().out
  run('prepare', tmp_path / 'elsewhere', tmp_path)
  run('evaluate', tmp_path / 'run', tmp_path, **changes)  # Of the samples that are there.
  out = capsys.readouterr().out
  assert 'evaluating 4 samples of step 0' in out and '0 of 4 samples to make' in out
  run('train', tmp_path / 'run', tmp_path, **STEADY, **{'train.num_steps': 2})
  assert f'weights of {path}\n' in capsys.readouterr().out
  run('train', tmp_path / 'direct', tmp_path, path, **STEADY, **{'train.num_steps': 2})
  assert_same(*(state_of(tmp_path, tmp_path / name) for name in ('run', 'direct')))
  kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert kept['data']['fingerprint'] and kept['init_from'] == str(path)


def test_evaluating_against_a_reference_of_elsewhere_needs_no_data(tmp_path, weights):
  """As published weights against published statistics."""
  np.savez(tmp_path / 'reference.npz', mu=np.full(64, 100.0), sigma=50.0 * np.eye(64))
  changes = {
    **{'sample.num_samples': 12, 'eval.features.name': 'pixels', 'eval.metrics': ('fid',)},
    'eval.reference': str(tmp_path / 'reference.npz'),
  }
  run('evaluate', tmp_path / 'run', tmp_path, weights[0], **changes)
  run('evaluate', tmp_path / 'run', tmp_path, **changes)  # And once more from the checkpoint.
  result = json.loads((tmp_path / 'run' / 'eval' / 'ddim3-cfg1.json').read_text())
  assert result['metrics']['frechet_distance'] > 0 and 'real_baseline' not in result
  assert not list((tmp_path / 'data').glob('digits*'))
  assert not list((tmp_path / 'run' / 'eval').glob('*.png'))


def test_new_label_rows_are_trained_before_they_are_sampled(tmp_path, weights):
  with pytest.raises(InputError, match=r'4 classes here, 10 there.*train them before sampling'):
    run('sample', tmp_path / 'run', tmp_path, weights[0], num_classes=4)
  assert not list((tmp_path / 'run').iterdir())


def test_latent_samples_without_training(tmp_path, capsys):
  """A directory of diffusers and an autoencoder are all that is needed."""
  folder = write_diffusers(tmp_path / 'transformer')
  sizes = {name.removeprefix('vae.'): v for name, v in RECORDED.items() if name.startswith('vae.')}
  changes = {
    **RECORDED,
    'data.channels': 3,
    'model.dit.frequency_shift': 1,
    'vae.checkpoint': str(write_autoencoder(tmp_path, sizes=sizes)),
    'sample.num_samples': 4,
    'sample.batch_size': 4,
  }
  with pytest.raises(InputError, match=r"config\.vae\.scale.*published DiTs: 0\.18215, 'none'"):
    run('sample', tmp_path / 'run', tmp_path, folder, **changes)
  run('sample', tmp_path / 'run', tmp_path, folder, **changes, **{'vae.scale': 0.18215})
  assert f'weights of {folder}\nnothing was trained' in capsys.readouterr().out  # No notes.
  made, _ = load_samples(tmp_path / 'run' / 'samples' / 'ddim3-cfg1', 4)
  assert made.shape == (4, 16, 16, 3) and made.std() > 5
  kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert (tmp_path / 'run' / 'vae.safetensors').exists() and kept['vae']['fingerprint']
  experiment = create(tiny_mapping(tmp_path, **changes, **{'vae.scale': 0.18215}))
  meta = json.loads((tmp_path / 'run' / 'samples' / 'ddim3-cfg1' / 'meta.json').read_text())
  assert meta['identity']['autoencoder'] == experiment.first_stage.fingerprint
  np.testing.assert_allclose(meta['identity']['latent_scale'], 0.18215, rtol=1e-6)
