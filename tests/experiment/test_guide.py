"""Autoguidance by another run or an earlier checkpoint: which can guide, and the samples that they make."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import guide, stored
from diffusion_jax.experiment.checks import create, with_settings
from diffusion_jax.sampling import guided, sample_set, samples
from diffusion_jax.sampling.previews import without_guide
from tests.conftest import tiny_mapping

GUIDANCE = 'sample.guidance'


def test_a_guide_needs_no_model_without_labels(tmp_path):
  """Not even classes; without a guide both are refused."""
  for changes in ({'objective.denoising.class_dropout': 0.0}, {'num_classes': 0}):
    changes = {**changes, 'sample.cfg_scale': 2.0}
    with pytest.raises(InputError, match=r'config\.sample\.cfg_scale: got 2, allowed 1'):
      create(tiny_mapping(tmp_path, **changes))
    for name, value in (('workdir', 'runs/small'), ('checkpoint', '500')):
      found = create(tiny_mapping(tmp_path, **changes, **{f'{GUIDANCE}.{name}': value}))
      assert found.generator().autoguided and found.generator().guidance.scale == 2
      assert without_guide(found).guidance.scale is None  # Training has no guide at hand.


def test_a_set_is_named_by_its_guide(tmp_path):
  def suffix(**changes):
    return guided.suffix(create(tiny_mapping(tmp_path, **{'sample.cfg_scale': 2.0, **changes})))

  small = {f'{GUIDANCE}.workdir': 'runs/small'}
  assert suffix(**small) == '-guide_small'
  assert suffix(**small, **{f'{GUIDANCE}.checkpoint': '500'}) == '-guide_small_500'
  assert suffix(**{f'{GUIDANCE}.checkpoint': '500'}) == '-guide_500'
  assert suffix(**small, **{'sample.cfg_scale': 1.0}) == ''


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'schedule.name': 'linear'}, r'schedule: .*linear.*here .*cosine'),
    ({'process.prediction_type': 'x0'}, r"process: .*'x0'.*here .*'v'"),
    ({'num_classes': 0}, r'num_classes: 0, here 10'),
    ({'data.image_size': 16}, r'x0: \(16, 16, 1\), here \(8, 8, 1\)'),
    (None, r'config\.json: not found, so nothing was trained'),
  ],
)
def test_a_guide_of_something_else_is_refused(tmp_path, changes, message):
  folder = tmp_path / 'other'
  folder.mkdir()
  if changes is not None:
    stored.save(folder, create(tiny_mapping(tmp_path, **changes)).mapping)
  given = {'sample.cfg_scale': 2.0, f'{GUIDANCE}.workdir': str(folder)}
  with pytest.raises(InputError, match=rf'(?s)workdir: .*other cannot guide.*{message}'):
    guide.load(create(tiny_mapping(tmp_path, **given)), tmp_path / 'run')


def test_an_own_checkpoint_needs_a_workdir(tmp_path):
  given = {'sample.cfg_scale': 2.0, f'{GUIDANCE}.checkpoint': '2'}
  with pytest.raises(InputError, match="checkpoint: got '2', but this run has no workdir"):
    guide.opened(create(tiny_mapping(tmp_path, **given)), None)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run with the checkpoints 2 and 4, and `small`, a smaller network."""
  tmp_path = tmp_path_factory.mktemp('guide')
  fast = {'optimizer.warmup_steps': 1, 'optimizer.learning_rate': 0.02, 'train.ema_decay': 0.1}
  run_mode('train', tiny_mapping(tmp_path, **fast), {}, tmp_path / 'run', as_json=False)
  small = {**fast, 'model.dit.depth': 1, 'model.dit.hidden_size': 16, 'train.num_steps': 2}
  run_mode('train', tiny_mapping(tmp_path, **small), {}, tmp_path / 'small', as_json=False)
  return tmp_path


@pytest.mark.full
def test_samples_are_those_of_the_combined_predictions(trained):
  """By the denoisers of both runs, in a loop of its own."""
  labels, scale = [7, 7, 2], 2.5
  given = {f'{GUIDANCE}.workdir': str(trained / 'small')}
  run, main, other = (
    dj.load_run(trained / 'run', given),
    dj.load_run(trained / 'run'),
    dj.load_run(trained / 'small'),
  )
  x_t, denoise = run.noise([0, 1, 2]), run.denoiser(labels, cfg_scale=scale)
  for t, s in itertools.pairwise(run.times(6)):
    good, bad = (each.denoiser(labels)(x_t, t) for each in (main, other))
    x0, eps = (b + scale * (g - b) for g, b in zip(good[:2], bad[:2]))
    found = denoise(x_t, t)
    np.testing.assert_allclose(found.x0, x0, atol=1e-4)
    np.testing.assert_allclose(found.eps, eps, atol=1e-4)
    alpha, sigma = run.schedule(jnp.float32(s))
    x_t = alpha * x0 + sigma * eps
  made = run.sample(labels, num_steps=6, cfg_scale=scale)
  assert np.abs(run.to_images(x_t).astype(int) - made).max() <= 1
  assert np.abs(made.astype(int) - main.sample(labels, num_steps=6, cfg_scale=scale)).max() > 10
  unguided = [each.sample(labels, num_steps=6, cfg_scale=1.0) for each in (run, main)]
  np.testing.assert_array_equal(*unguided)
  with pytest.raises(InputError, match=r'checkpoint: .*cannot guide: .*\[2, 4\]'):
    dj.load_run(trained / 'run', {f'{GUIDANCE}.checkpoint': '3'}).sample([1], cfg_scale=2.0)


@pytest.mark.slow
def test_guides_share_a_program_and_their_weights_are_of_the_set(trained, capsys):
  flags = {'sample.cfg_scale': 2.0, f'{GUIDANCE}.checkpoint': '2', 'sample.num_samples': 10}
  mapping = tiny_mapping(trained, **flags)
  run_mode('sample', mapping, flags, trained / 'run', as_json=False)
  folder = trained / 'run' / 'samples' / 'ddim3-cfg2-guide_2'
  identity = sample_set.read_meta(folder)['identity']
  assert identity['step'] == 4 and identity['guide']['step'] == 2
  assert identity['guide']['parameters'] != identity['parameters']
  assert sample_set.read_meta(folder)['evaluations'] == 6
  capsys.readouterr()
  run_mode('sample', mapping, flags, trained / 'run', as_json=False)
  assert '0 of 10 samples to make' in capsys.readouterr().out

  run = dj.load_run(trained / 'run', flags)
  experiment, images = run.experiment, []
  for step in ('2', '4'):
    changed = with_settings(experiment, {f'{GUIDANCE}.checkpoint': step})
    images.append(dj.run.Run(changed, trained / 'run').sample([1, 2]))
  assert len(experiment.compiled) == 1 and np.any(images[0] != images[1])
  alone = dj.load_run(trained / 'run').sample([1, 2], cfg_scale=1.0)
  assert np.abs(images[1].astype(int) - alone).max() <= 1  # Guided by itself.

  with pytest.raises(InputError, match=r'(?s)holds a set that was made otherwise.*guide: '):
    sample_set.require_same(folder, identity, {**identity, 'guide': {'step': 2}})
  assert samples.find(experiment, trained / 'run') == folder
