"""Every shipped system, made small: trains, resumes, samples, decodes and is evaluated, from a folder.

The autoencoder of the latent ones is that of configs/vae.py, trained two steps here.
"""

import importlib
import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.command import run_mode
from diffusion_jax.experiment.checks import create
from tests.fixtures.parity_weights import weight
from tests.support.samples import load_samples
from tests.support.sources import SMALL, write_tree

pytestmark = pytest.mark.unoptimised
FAST = ['dit_cfg:8']  # And vae, which the first trains.
SLOW = ['dit_pixel', 'ddpm_cfg', 'ddim_vae_cfg']
FULL = [
  'dit_cfg',
  'dit_xl',
  'ddpm',
  'ddpm_vae',
  'ddpm_vae_cfg',
  'ddim',
]  # Each close to one of those.
EACH = [
  *FAST,
  *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
  *(pytest.param(name, marks=pytest.mark.full) for name in FULL),
]
SHRUNK = {
  'data.image_size': 16,
  'data.class_list': 'all',
  'data.name': 'pets',
  'vae.channels': 32,
  'vae.channel_mult': (1, 1, 1),
  'vae.num_res_blocks': 1,
  'vae.batch_size': 4,
  'model.dit.hidden_size': 32,
  'model.dit.depth': 1,
  'model.dit.num_heads': 2,
  'model.unet.channels': 32,
  'model.unet.channel_mult': (1, 1),
  'model.unet.num_res_blocks': 1,
  'model.unet.head_channels': 16,
  'optimizer.warmup_steps': 1,
  'optimizer.decay': 'constant',  # Else the number of steps would be compiled in.
  'train.num_steps': 2,
  'train.batch_size': 4,
  'train.log_every_steps': 1,
  'sample.num_samples': 6,
  'sample.batch_size': 6,
  'sample.grid_columns': 2,
  'sample.gif_frames': 3,
  'eval.features.name': 'pixels',
  'eval.metrics': ('fid',),
}
F8 = {'data.image_size': 32, 'vae.channel_mult': (1, 1, 1, 1)}


def shrunk(name, tmp_path, **changes):
  """The config of configs/NAME.py at the smallest sizes, and the flags that make it so."""
  file, _, argument = name.partition(':')
  config = importlib.import_module(f'configs.{file}').get_config(*([argument] if argument else []))
  changes = {
    **SHRUNK,
    'data.dir': str(tmp_path / 'data'),
    'data.source': str(tmp_path / 'pets'),
    **({'num_classes': 3} if config.num_classes else {}),
    'model.unet.attention_resolutions': (4,) if config.space == 'latent' else (8,),
    **(F8 if len(config.vae.channel_mult) == 4 else {}),
    **changes,
  }
  config.update_from_flattened_dict(changes)
  return config.to_dict(), changes


def run(name, mode, tmp_path, **changes):
  """In four steps of sampling; all flags are given to train, none to sample and evaluate."""
  mapping, changes = shrunk(name, tmp_path, **{'sample.num_steps': 4}, **changes)
  overrides = changes if mode == 'train' else {}
  run_mode(mode, mapping, overrides, tmp_path / name.replace(':', '-'), as_json=False)


def autoencoder(name, tmp_path):
  """The flag of the autoencoder that a system needs, trained if it is not there yet."""
  config = shrunk(name, tmp_path)[0]
  if config['space'] == 'pixel':
    return {}
  sizes = {f'vae.{field}': config['vae'][field] for field in ('z_channels', 'embed_channels')}
  sizes |= {'data.image_size': config['data']['image_size']}
  sizes |= {
    'vae.channel_mult': config['vae']['channel_mult'],
    'objective.autoencoder.perceptual_weight': 0.0,
  }
  folder = tmp_path / f'vae-f{2 ** (len(sizes["vae.channel_mult"]) - 1)}'
  if not folder.exists():
    mapping, changes = shrunk('vae', tmp_path, **sizes)
    run_mode('train', mapping, changes, folder, as_json=False)
  return {'vae.checkpoint': str(folder)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  tmp_path = tmp_path_factory.mktemp('systems')
  write_tree(tmp_path / 'pets', SMALL)
  return tmp_path


@pytest.mark.parametrize('name', EACH)
def test_it_trains_resumes_samples_and_is_evaluated(folder, capsys, name):
  given = autoencoder(name, folder)
  run(name, 'train', folder, **given)
  run(name, 'train', folder, **given, **{'train.num_steps': 3})
  assert 'resumed at step 2' in capsys.readouterr().out
  workdir = folder / name.replace(':', '-')
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == [1, 2, 3]
  assert all(np.isfinite(line['loss']) for line in lines if 'loss' in line)

  run(name, 'sample', folder)
  (samples,) = (workdir / 'samples').iterdir()
  images, labels = load_samples(samples, 6)
  side = shrunk(name, folder)[0]['data']['image_size']
  assert images.shape == (6, side, side, 3) and images.std() > 1
  unconditional = shrunk(name, folder)[0]['num_classes'] == 0
  np.testing.assert_array_equal(labels, 0 if unconditional else np.arange(6) % 3)
  run(name, 'evaluate', folder)
  (path,) = (workdir / 'eval').iterdir()
  result = json.loads(path.read_text())
  assert np.isfinite(result['metrics']['frechet_distance'])
  assert result['samples']['step'] == 3
  assert ('autoencoder' in result['samples']) == bool(given)


@pytest.mark.parametrize('name', EACH)
def test_sampling_from_random_weights_stays_bounded(folder, name):
  """With all the steps, the spacing, sampler and guidance that the config has."""
  experiment = create(shrunk(name, folder)[0])
  flat = flatten_dict(experiment.abstract_state.params['model'], sep='/')
  random = {
    path: weight(path + ('weight' if path.endswith('scale') else ''), leaf.shape[::-1]).T
    for path, leaf in flat.items()
  }
  params = unflatten_dict(random, sep='/')
  generator, index = experiment.generator(), np.arange(4, dtype=np.uint32)
  labels = experiment.sample_labels(index)
  network = experiment.objective.network
  x_0, _ = jax.jit(lambda params: generator(network({'model': params}), index, labels))(params)
  assert np.isfinite(x_0).all()
  alpha = float(experiment.schedule(generator.times[0]).alpha)
  free = experiment.config.process.prediction_type == 'eps' and not experiment.config.sample.clip_x0
  # An eps that has nothing to do with x_t leaves (x_T - sigma eps) / alpha_T: as published, dit_xl.
  assert np.abs(x_0).max() < (20 / alpha if free else 20)
