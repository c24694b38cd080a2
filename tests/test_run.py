"""The library: what a notebook does with a work directory equals what the command line does."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffusion_jax as dj
from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from tests.conftest import tiny_mapping
from tests.support.samplers import run_sampler
from tests.support.samples import load_samples


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A work directory with a sample set of 20 images, guided."""
  tmp_path = tmp_path_factory.mktemp('library')
  mapping = tiny_mapping(tmp_path, **{'sample.cfg_scale': 2.0})
  for mode in ('train', 'sample'):
    run_mode(mode, mapping, {}, tmp_path / 'run')
  return tmp_path / 'run'


@pytest.fixture(scope='module')
def run(trained):
  return dj.load_run(trained)


def test_importing_it_is_cheap():
  program = (
    'import sys, diffusion_jax; print("jax" in sys.modules, diffusion_jax.load_run.__name__)'
  )
  found = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert found.stdout.split() == ['False', 'load_run']


def test_samples_are_those_of_the_command_line(trained, run):
  made, labels = load_samples(trained / 'samples' / 'ddim3-cfg2', 20)
  assert run.step == 4 and run.workdir == trained
  np.testing.assert_array_equal(run.sample(), made)
  some = run.sample(labels[[3, 17]], indices=[3, 17])
  assert np.abs(some.astype(int) - made[[3, 17]]).max() <= 1


def test_given_noise_is_what_sampling_starts_from(run):
  noise = run.noise([5, 6])  # The cosine schedule's x_T is the noise itself.
  made = run.sample([1, 2], noise=noise, seed=99)
  expected = run.sample([1, 2], indices=[5, 6])
  assert np.abs(made.astype(int) - expected).max() <= 1 and made.std() > 10


def test_a_sampler_of_ones_own_around_the_denoiser(run):
  labels, times = [7, 7, 2], run.times(6)
  denoise = run.denoiser(labels, cfg_scale=2.0)
  x_t = run.noise([0, 1, 2])
  for t, s in itertools.pairwise(times):
    prediction, (alpha, sigma) = denoise(x_t, t), run.schedule(jnp.float32(s))
    x_t = alpha * prediction.x0 + sigma * prediction.eps
  expected = run.sample(labels, num_steps=6, cfg_scale=2.0)
  assert np.abs(run.to_images(x_t).astype(int) - expected).max() <= 1
  keys = jax.random.split(jax.random.key(0), 3)
  same, _ = run_sampler(run.sampler, denoise, run.noise([0, 1, 2]), keys, times)
  np.testing.assert_allclose(same, x_t, atol=1e-4)


def test_a_denoiser_has_no_memory(trained):
  run = dj.load_run(trained, {'sample.guidance.momentum': -0.5})
  with pytest.raises(InputError, match=r'momentum: got -0\.5, allowed 0: this denoiser'):
    run.denoiser([1], cfg_scale=2.0)


def test_seeds_steps_and_guidance_count(run):
  base = run.sample([1, 2])
  for other in (dict(seed=1), dict(num_steps=2), dict(cfg_scale=1.0)):
    assert np.any(run.sample([1, 2], **other) != base)


def test_images_are_encoded_and_decoded(run):
  images = run.train_data.read(np.arange(5))['image']
  x0 = run.encode(images)
  assert x0.shape == (5, 8, 8, 1) and float(x0.min()) == -1
  np.testing.assert_array_equal(run.to_images(x0), images)


def test_training_steps_by_hand(trained):
  sizes = {'model.dit.hidden_size': 32, 'model.dit.depth': 1, 'optimizer.warmup_steps': 5}
  run = dj.new_run('quickstart', {**sizes, 'data.dir': str(trained.parent / 'data')})
  state, losses = run.init(), []
  for number in range(60):
    state, metrics = run.train_step(state, run.train_data.read(np.arange(16) + 16 * number))
    losses.append(float(metrics['loss']))
  assert int(state.step) == 60 and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_a_new_run_prepares_its_data(tmp_path):
  run = dj.new_run('quickstart', {'data.dir': str(tmp_path / 'data'), 'data.workers': 1})
  with pytest.raises(InputError, match='no prepared data'):
    _ = run.train_data
  run.prepare()
  assert run.train_data.num_examples == 1500 and (tmp_path / 'data' / 'data.png').exists()
  (folder,) = (tmp_path / 'data').glob('digits-8-*')
  before = folder.stat().st_mtime_ns
  run.prepare()  # A second time there is nothing to do.
  assert folder.stat().st_mtime_ns == before


def test_a_state_trained_by_hand_samples(trained):
  sizes = {'model.dit.hidden_size': 32, 'model.dit.depth': 1, 'optimizer.warmup_steps': 5}
  run = dj.new_run('quickstart', {**sizes, 'data.dir': str(trained.parent / 'data')})
  batch = run.train_data.read(np.arange(16))
  state = run.init()
  for _ in range(30):
    state, _ = run.train_step(state, batch)
  after = run.with_state(state)
  expected = jax.tree.map(jnp.copy, state.averages['ema']['model'])
  state, _ = run.train_step(state, batch)  # Donates the state, but not the copied weights.
  assert (after.step, run.step) == (30, 0)
  jax.tree.map(np.testing.assert_array_equal, after.params, expected)
  made, untrained = (each.sample([3, 4], num_steps=4) for each in (after, run))
  assert np.any(made != untrained)
  raw = dj.new_run('quickstart', {**sizes, 'sample.average': ''}).with_state(state)
  jax.tree.map(np.testing.assert_array_equal, raw.params, jax.device_get(state.params['model']))


def test_measuring_images_of_ones_own(run):
  images = run.train_data.read(np.arange(200))['image']
  features = run.features(images)
  assert len(features.features) == 200
  real = run.measure(images)['frechet_distance']
  noise = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
  assert 0 <= real < run.measure(noise)['frechet_distance']


def test_overrides_and_checkpoints(trained):
  run = dj.load_run(trained, {'sampler.name': 'ddpm', 'sample.num_steps': 2}, checkpoint='2')
  assert run.config.sampler.name == 'ddpm' and run.step == 2
  assert dj.load_run(trained, checkpoint='best').step in (2, 4)
  with pytest.raises(InputError, match=r'config\.model\.dit\.depth'):
    dj.load_run(trained, {'model.dit.depth': 9})
  with pytest.raises(InputError, match=r"sample\.checkpoint: got '3'"):
    _ = dj.load_run(trained, checkpoint='3').params
  with pytest.raises(InputError, match='not found'):
    dj.load_run(trained / 'nothing')


def test_a_new_run_of_a_shipped_config():
  run = dj.new_run('quickstart', {'model.dit.depth': 2, 'model.dit.hidden_size': 32})
  assert run.model.depth == 2 and run.params['blocks']['mlp_in']['kernel'].shape[0] == 2
  assert run.describe()['parameters'] == sum(x.size for x in jax.tree.leaves(run.params))
  assert run.sample([3], num_steps=2).shape == (1, 8, 8, 1)
  with pytest.raises(InputError, match=r"config: got 'quickstar', allowed .*nearest 'quickstart'"):
    dj.new_run('quickstar')


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(labels=[10]), r'labels: got \[10\], allowed 0..9'),
    (dict(labels=['ten']), 'labels: .*ten'),
    (dict(labels=[1, 2], indices=[0]), 'labels, indices, noise'),
    (dict(labels=[1], num_steps=2000), 'num_steps: got 2000'),
  ],
)
def test_what_cannot_be_sampled_is_refused(run, arguments, message):
  with pytest.raises(InputError, match=message):
    run.sample(**arguments)
