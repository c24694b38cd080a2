"""Bits a dimension of held-out images under a model that is exact for Gaussian pixels."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.command import run_mode
from diffusion_jax.diffusion.likelihood import flow_times
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import likelihood
from diffusion_jax.experiment.checks import create
from diffusion_jax.randomness import example_keys, fold_in_each, purpose_key
from diffusion_jax.sampling import measured
from diffusion_jax.training.state import Weights
from tests.conftest import tiny_mapping

C = 0.8  # The deviation of the pixels, by label: C + label / 100.


class Exact:
  """An objective whose network predicts x0 of Gaussian pixels."""

  def __init__(self, schedule):
    self.schedule = schedule

  def network(self, parts):
    def predict(x, time, condition):
      n = self.schedule((time + 1) / self.schedule.num_timesteps)
      alpha, sigma = (value[:, None, None, None] for value in n)
      variance = (C + condition['label'][:, None, None, None] / 100) ** 2
      return alpha * variance * x / (alpha**2 * variance + sigma**2)

    return predict


def test_bits_of_gaussian_pixels(tiny):
  changes = {'process.prediction_type': 'x0', 'eval.nll_num_images': 7, 'eval.nll_num_steps': 60}
  results = []
  for size in (3, 250):  # Padded, and all at once.
    experiment = tiny(**changes, **{'sample.batch_size': size})
    vars(experiment)['objective'] = Exact(experiment.schedule)
    results.append(likelihood.measure(experiment, Weights({}, None)))
  assert results[0] == pytest.approx(results[1], rel=1e-5)

  source = experiment.datasets.images('holdout')
  chosen = np.linspace(0, source.num_examples - 1, 7).round().astype(int)
  read = source.read(chosen)
  keys = example_keys(purpose_key(0, 'nll'), jnp.asarray(chosen))
  noise = jax.vmap(lambda key: jax.random.uniform(key, (8, 8, 1)))(fold_in_each(keys, 0))
  x0 = (read['image'] + np.asarray(noise)) / 127.5 - 1
  n = experiment.schedule(jnp.float32(flow_times(experiment.schedule, 60)[0]))
  deviation = np.hypot(C + read['label'] / 100, float(n.sigma / n.alpha))[:, None, None, None]
  density = stats.norm.logpdf(x0, scale=deviation).sum(axis=(1, 2, 3))
  bits = -density / 64 / np.log(2) + np.log2(127.5)
  assert results[0]['nll'] == pytest.approx(bits.mean(), abs=0.01)
  assert results[0]['nll_std'] == pytest.approx(bits.std(ddof=1) / np.sqrt(7), rel=0.02)


def test_latents_have_none(tmp_path):
  with pytest.raises(InputError, match=r'config\.eval\.nll_num_images: got 5, allowed 0 in latent'):
    create(tiny_mapping(tmp_path, **{'space': 'latent', 'eval.nll_num_images': 5}))


@pytest.mark.slow
@pytest.mark.unoptimised
def test_it_stands_beside_the_other_metrics(tmp_path, monkeypatch):
  changes = {'eval.nll_num_images': 4, 'eval.nll_num_steps': 5, 'eval.real_baseline': False}
  changes |= {'eval.features.name': 'pixels', 'eval.metrics': ('fid',)}
  run_mode('train', tiny_mapping(tmp_path, **changes), changes, tmp_path / 'run')
  changes |= {'sample.name': 'kept'}
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode('evaluate', mapping, changes, tmp_path / 'run')
  (path,) = (tmp_path / 'run' / 'eval').glob('*.json')
  result = json.loads(path.read_text())
  assert 3 < result['metrics']['nll'] < 30 and result['metrics']['nll_std'] > 0
  assert result['protocol']['nll']['num_images'] == 4
  shutil.rmtree(tmp_path / 'run' / 'checkpoints' / str(result['samples']['step']))
  monkeypatch.setattr(
    measured, 'sample_result', lambda *_: pytest.fail('the images are measured first')
  )
  with pytest.raises(InputError, match=r'config\.sample\.checkpoint: got'):
    run_mode('evaluate', mapping, changes, tmp_path / 'run')
