"""Latent systems through the same door as the command line, with an autoencoder of random weights."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from safetensors.numpy import load_file, save_file

from diffusion_jax.command import run_mode
from diffusion_jax.data import latents
from diffusion_jax.errors import DamagedError, InputError, Stop
from diffusion_jax.experiment import first_stage
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.models.vae import AutoencoderKL, Posterior
from diffusion_jax.objectives.base import x0_of
from diffusion_jax.pretrained.compvis import autoencoder_params
from tests.conftest import tiny_mapping
from tests.fixtures.parity_weights import weight
from tests.runtime.test_checkpoint import assert_same
from tests.support.samples import load_samples
from tests.support.sources import SMALL, write_tree

SIZES = {
  'channels': 32,
  'channel_mult': (1, 1, 1),
  'num_res_blocks': 1,
  'z_channels': 3,
  'embed_channels': 3,
}
LATENT = {
  'space': 'latent',
  'data.name': 'pets',
  'data.image_size': 16,
  'data.channels': 3,
  'data.holdout': 0,
  'data.flip': True,
  'num_classes': 3,
  **{f'vae.{name}': value for name, value in SIZES.items()},
  'vae.batch_size': 4,
  'optimizer.decay': 'constant',
  'train.batch_size': 8,
  'model.dit.depth': 1,
  'eval.features.name': 'pixels',
  'eval.metrics': ('fid',),
  'sample.cfg_scale': 2.0,
  'vae.shift': 'channel',
}


def write_autoencoder(folder, seed='', sizes=SIZES):
  """vae.safetensors in a folder, as a run keeps it."""
  module = AutoencoderKL(**sizes)
  shapes = flatten_dict(autoencoder_params(module), sep='/')
  flat = {}
  for name, leaf in shapes.items():
    kind = 'weight' if name.endswith('scale') else ''
    values = weight(seed + name + kind, leaf.shape[::-1])  # The last axis is the fan-out here.
    flat[name] = np.ascontiguousarray(values.transpose())
  params = unflatten_dict(flat, sep='/')
  first = first_stage.FirstStage(module, params, first_stage.fingerprint_of(params), 'random')
  folder.mkdir(parents=True, exist_ok=True)
  first_stage.save_copy(folder, first, replace=True)
  return folder / 'vae.safetensors'


def flags(tmp_path, **changes):
  source = {'data.source': str(tmp_path / 'pets')}
  return {**LATENT, **source, 'vae.checkpoint': str(tmp_path / 'vae.safetensors'), **changes}


def run(mode, folder, tmp_path, **changes):
  changes = flags(tmp_path, **changes)
  run_mode(mode, tiny_mapping(tmp_path, **changes), changes, folder, as_json=False)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A prepared set, its latents, and a run on them; tests below only add."""
  tmp_path = tmp_path_factory.mktemp('latent')
  write_tree(tmp_path / 'pets', SMALL)
  write_autoencoder(tmp_path)
  run('prepare', tmp_path / 'run', tmp_path)
  run('train', tmp_path / 'run', tmp_path)
  return tmp_path


def experiment_of(tmp_path, **changes):
  experiment = create(tiny_mapping(tmp_path, **flags(tmp_path, **changes)))
  fingerprint = experiment.first_stage.fingerprint
  return create(
    tiny_mapping(tmp_path, **flags(tmp_path, **changes, **{'vae.fingerprint': fingerprint}))
  )


def state_of(experiment, folder):
  checkpoints = open_checkpoints(experiment, folder, read_only=True)
  restored = checkpoints.restore(experiment.abstract_state)
  checkpoints.close()
  return restored.state


def test_prepare_and_training_leave_what_the_readme_says(trained):
  folder = trained / 'run'
  assert Image.open(folder / 'latents.png').width > 10 * 48
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(line['loss']) for line in lines if 'loss' in line)
  assert [line['step'] for line in lines if 'holdout_loss' in line] == [2, 4]
  assert Image.open(folder / 'previews' / 'step_00000004.png').height >= 3 * 48
  assert json.loads((folder / 'config.json').read_text())['vae']['fingerprint']


def test_cached_latents_are_the_encoders(trained):
  """Of images and of their mirror images, to what float16 holds."""
  experiment = experiment_of(trained)
  images, cached = experiment.datasets.images('train'), experiment.train_data
  assert cached.num_examples == 2 * images.num_examples == 24
  first = experiment.first_stage
  pixels = np.concatenate([images.values, images.values[:, :, ::-1]]) / np.float32(127.5) - 1
  encode = jax.jit(lambda x: first.module.apply({'params': first.params}, x, method='encode'))
  found = cached.read(np.arange(24))['posterior']
  np.testing.assert_allclose(found, np.concatenate(encode(pixels), axis=-1), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('shift', ['none', 'channel'])
def test_what_the_backbone_is_fed_has_deviation_one(trained, shift):
  experiment = experiment_of(trained, **{'vae.shift': shift})
  batch = experiment.train_data.read(np.arange(24))
  keys = jax.random.split(jax.random.key(0), 24)
  x0 = x0_of(batch, experiment.scaling, keys, flip=True)
  assert x0.shape == (24, 4, 4, 3) and abs(np.std(x0) - 1) < 0.05
  again = x0_of(batch, experiment.scaling, keys[::-1], flip=True)
  posterior = Posterior.from_parameters(batch['posterior'])
  noise = (np.asarray(x0) - again) / (experiment.scaling.scale * np.exp(posterior.logvar / 2))
  assert abs(np.std(noise) - np.sqrt(2)) < 0.1  # Fresh samples of the posterior each time.
  if shift == 'channel':
    np.testing.assert_allclose(np.mean(x0, axis=(0, 1, 2)), 0, atol=0.15)


def test_a_given_scale_is_used(trained):
  scaling = experiment_of(trained, **{'vae.scale': 0.18215, 'vae.shift': 'none'}).scaling
  assert float(scaling.scale) == np.float32(0.18215) and not scaling.shift.any()


def test_samples_are_decoded_with_the_scaling_of_the_checkpoint(trained):
  """x_0 as the sampler gives it, beyond +-1, restored and decoded; what was measured is not there."""
  changes = {'sample.name': 'decoded', 'sample.num_samples': 9, 'sample.batch_size': 9}
  (folder,) = (trained / 'data').glob('pets-*')
  folder.rename(trained / 'gone')
  try:
    run('sample', trained / 'run', trained, **changes)
  finally:
    (trained / 'gone').rename(folder)
  made, labels = load_samples(trained / 'run' / 'samples' / 'decoded', 9)
  experiment = experiment_of(trained, **changes)
  state, first = state_of(experiment, trained / 'run'), experiment.first_stage

  @jax.jit
  def expected(params):
    x_0, _ = experiment.generator()(
      experiment.objective.network({'model': params}), np.arange(9, dtype=np.uint32), labels
    )
    z = x_0 / state.scaling.scale + state.scaling.shift
    return x_0, first.module.apply({'params': first.params}, z, method='decode')

  x_0, images = expected(state.averages['ema']['model'])
  assert np.abs(x_0).max() > 1.5
  levels = np.clip(np.floor(127.5 * np.asarray(images) + 128), 0, 255)
  assert np.abs(made.astype(float) - levels).max() <= 1 and made.std() > 5
  meta = json.loads((trained / 'run' / 'samples' / 'decoded' / 'meta.json').read_text())
  assert meta['identity']['autoencoder'] == first.fingerprint
  np.testing.assert_allclose(meta['identity']['latent_scale'], experiment.scaling.scale)


def test_prepare_tells_the_psnr_of_decoded_latents(trained, capsys):
  """Each image decoded from its posterior's mean, by the module itself."""
  run('prepare', trained / 'run', trained)
  told = float(re.search(r'PSNR ([-\d.]+) dB', capsys.readouterr().out)[1])
  experiment = experiment_of(trained)
  images, first = experiment.datasets.images('holdout').values, experiment.first_stage
  params = {'params': first.params}
  posterior = first.module.apply(params, images / np.float32(127.5) - 1, method='encode')
  decoded = first.module.apply(params, posterior.mean, method='decode')
  error = 127.5 * (np.clip(decoded, -1, 1) + 1) - images
  expected = np.mean(10 * np.log10(255**2 / np.mean(np.square(error), axis=(1, 2, 3))))
  assert abs(told - expected) < 0.05


@pytest.mark.slow
@pytest.mark.unoptimised
def test_interrupted_equals_uninterrupted_with_latents_on_the_device(trained, tmp_path):
  """Two steps of four, then the rest with the latents kept on the device."""
  parts, whole = tmp_path / 'parts', trained / 'run'
  run('train', parts, trained, **{'train.num_steps': 2})
  run('train', parts, trained, **{'data.device_resident': True})
  experiment = experiment_of(trained)
  assert_same(state_of(experiment, parts), state_of(experiment, whole))


def test_evaluate_needs_neither_the_flag_nor_the_original_autoencoder(trained):
  hidden = trained / 'hidden'
  (trained / 'vae.safetensors').rename(hidden)
  try:
    changes = {**LATENT, 'sample.num_samples': 6}
    run_mode('evaluate', tiny_mapping(trained, **changes), changes, trained / 'run', as_json=False)
    run('train', trained / 'run', trained, **{'train.num_steps': 4})  # Nothing to do, but it loads.
  finally:
    hidden.rename(trained / 'vae.safetensors')
  (result,) = (trained / 'run' / 'eval').glob('*.json')
  assert json.loads(result.read_text())['metrics']['frechet_distance'] > 0


def test_another_autoencoder_is_refused(trained, tmp_path):
  other = write_autoencoder(tmp_path, seed='other')
  for mode, folder in (('train', 'new'), ('train', 'run'), ('sample', 'run')):
    message = r'no latents by .*(.|\n)*only by others:\n.*made by'
    if folder == 'run':
      message = r'but config\.vae\.fingerprint is'
    with pytest.raises(InputError, match=message):
      run(mode, trained / folder, trained, **{'vae.checkpoint': str(other)})


def test_an_autoencoder_of_other_sizes_is_named_with_both_shapes(trained, tmp_path):
  f8 = write_autoencoder(
    tmp_path, sizes={**SIZES, 'channel_mult': (1, 1, 1, 1), 'z_channels': 4, 'embed_channels': 4}
  )
  with pytest.raises(InputError) as caught:
    run('train', tmp_path / 'run', trained, **{'vae.checkpoint': str(f8)})
  assert str(caught.value) == (
    f'{f8}: an autoencoder of other sizes, whose latents of 16 px images are 2x2x4, not 4x4x3:\n'
    '  config.vae.channel_mult: got (1, 1, 1), the file has (1, 1, 1, 1)\n'
    '  config.vae.z_channels: got 3, the file has 4\n'
    '  config.vae.embed_channels: got 3, the file has 4'
  )


def test_damaged_weights_are_not_used(trained, tmp_path):
  arrays = load_file(trained / 'vae.safetensors')
  path = tmp_path / 'cut.safetensors'
  path.write_bytes((trained / 'vae.safetensors').read_bytes()[:-100])
  with pytest.raises(DamagedError, match=r'cut\.safetensors: not a whole safetensors file'):
    run('prepare', tmp_path / 'run', trained, **{'vae.checkpoint': str(path)})
  metadata = {'kind': first_stage.KIND, 'sizes': json.dumps({**SIZES, 'image_channels': 3})}
  changed = {**arrays, 'quant_conv/bias': arrays['quant_conv/bias'] + 1}
  save_file(changed, path, {**metadata, 'fingerprint': '0' * 16, 'origin': ''})
  with pytest.raises(DamagedError, match=r'cut\.safetensors: not what was written'):
    run('prepare', tmp_path / 'run', trained, **{'vae.checkpoint': str(path)})


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'vae.checkpoint': ''}, r'config\.vae\.checkpoint is empty.*configs/vae\.py'),
    ({'vae.checkpoint': 'nowhere'}, r'nowhere: no such file or directory; give a work directory'),
    ({'sample.clip_x0': True}, r'config\.sample\.clip_x0: got True, allowed False in latent space'),
    (
      {'sample.guidance.threshold': 0.9},
      r'config\.sample\.guidance\.threshold: got 0\.9, allowed 0 in latent space',
    ),
    ({'data.image_size': 18}, r'config\.data\.image_size: got 18, allowed multiples of 4'),
    ({'model.dit.patch_size': 3}, r'config\.model\.dit\.patch_size: got 3'),
    (
      {'objective.name': 'autoencoder', 'checkpoint.best_metric': 'holdout_psnr'},
      r"config\.space: got 'latent'",
    ),
    (
      {'process.prediction_type': 'eps'},
      r"config\.process\.prediction_type: got 'eps'.*log SNR -(\d|\.)+, where eps",
    ),
  ],
)
def test_what_cannot_be(trained, tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    run('train', tmp_path / 'run', trained, **changes)
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_a_damaged_copy_is_told_with_its_remedy_and_written_again(trained):
  copy = trained / 'run' / 'vae.safetensors'
  good = copy.read_bytes()
  copy.write_bytes(good[:-5] + bytes([good[-5] ^ 64]) + good[-4:])
  with pytest.raises(DamagedError, match=r'not what was written.*--config\.vae\.checkpoint='):
    run_mode('sample', tiny_mapping(trained, **LATENT), {}, trained / 'run', as_json=False)
  run('train', trained / 'run', trained, **{'train.num_steps': 6})
  again, original = load_file(copy), load_file(trained / 'vae.safetensors')
  assert again.keys() == original.keys()
  assert all(np.array_equal(again[name], original[name]) for name in again)


def test_prepare_reads_the_source_that_is_given(trained, tmp_path):
  """Another folder is another set, though one of that name is there, and the given one is taken."""
  other = write_tree(
    tmp_path / 'others', {'train/ant': 2, 'train/bee': 2, 'val/ant': 1, 'val/bee': 1}
  )
  run('prepare', tmp_path / 'run', trained, **{'data.source': str(other), 'num_classes': 2})
  with pytest.raises(InputError, match=r'nowhere'):
    run('prepare', tmp_path / 'run', trained, **{'data.source': str(tmp_path / 'nowhere')})
  (made,) = (
    p for p in (trained / 'data').glob('pets-*') if 'others' in (p / 'meta.json').read_text()
  )
  shutil.rmtree(made)


def test_files_that_are_no_autoencoder(trained, tmp_path):
  empty = tmp_path / 'empty'
  empty.mkdir()
  pickle = tmp_path / 'model.ckpt'
  pickle.write_bytes(b'')
  other = tmp_path / 'other.safetensors'
  save_file({'some.weight': np.zeros(3, np.float32)}, other)
  number, bert, old = (tmp_path / name for name in ('number', 'bert', 'old'))
  for folder, content in (
    (number, '5'),
    (bert, '{"model_type": "bert"}'),
    (
      old,
      '{"format_version": 1, "objective": {"name": "autoencoder"}, "data": {}, "model": {}, "train": {}}',
    ),
  ):
    folder.mkdir()
    (folder / 'config.json').write_text(content)
  for path, message in (
    (empty, r'no config\.json in it; give a work directory'),
    (trained / 'run', r"trained with config\.objective\.name 'denoising'; give"),
    (pickle, r'a pickle, which can run code.*--config\.allow_pickle=True'),
    (number, r'not a JSON object'),
    (bert, r'no diffusers model \(its config\.json has no _class_name\)'),
    (old, r'old: no finished checkpoint in it'),
    (other, r'no KL autoencoder of CompVis, it lacks encoder\.conv_in\.weight'),
  ):
    with pytest.raises(Stop, match=message):
      run('prepare', tmp_path / 'run', trained, **{'vae.checkpoint': str(path)})


@pytest.mark.slow
@pytest.mark.unoptimised
def test_latents_are_made_by_training_itself_once(trained, tmp_path, capsys):
  """In another data folder there are none yet, neither images nor latents."""
  changes = {'data.dir': str(tmp_path / 'data'), 'train.num_steps': 2}
  run('train', tmp_path / 'run', trained, **changes)
  out = capsys.readouterr().out
  assert 'preparing them from' in out and 'encoding them first' in out
  (folder,) = (tmp_path / 'data').glob('pets-*')
  assert len(latents.existing(folder)) == 1
  run('prepare', tmp_path / 'run', trained, **changes)
  assert 'complete already' in capsys.readouterr().out
