"""config.init_from: weights of elsewhere arrive as they are, and what does not fit is named."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import datasets, given_sizes, initial, preparation, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.models.latents import Scaling
from diffusion_jax.pretrained import diffusers
from diffusion_jax.stages.train import new_state
from tests.conftest import tiny_mapping
from tests.fixtures.parity_weights import weight, weights
from tests.pretrained.test_weights import FIXTURE, published, tied
from tests.stages.test_latent import SIZES, write_autoencoder

LABELS = ('condition', 'label', 'embedding')
AUTOENCODER = {f'vae.{name}': value for name, value in SIZES.items()}
# What the recorded DiT was made for: latents of four channels, and their variance.
RECORDED = {
  **AUTOENCODER,
  'space': 'latent',
  'vae.embed_channels': 4,
  'vae.z_channels': 4,
  'data.image_size': 16,
  'schedule.name': 'linear',
  'process.prediction_type': 'eps',
  'process.learned_variance': True,
}
LATENT = {**AUTOENCODER, 'space': 'latent', 'data.image_size': 16, 'data.channels': 3}


def make(tmp_path, path='', **changes):
  return create(tiny_mapping(tmp_path, **{'init_from': str(path), **changes}))


def random_params(experiment):
  """A function of the arrays' names and shapes."""
  flat = flatten_dict(jax.eval_shape(experiment.objective.init)['model'])
  return unflatten_dict({name: weight('/'.join(name), x.shape) for name, x in flat.items()})


def write_published(path, params):
  """Our DiT's arrays under the names and layouts of its authors' files, the other way round."""
  p = jax.device_get(params)
  depth, width = p['blocks']['attention_out']['bias'].shape
  qkv = p['blocks']['qkv']
  linear = {
    't_embedder.mlp.0': p['condition']['time_in'],
    't_embedder.mlp.2': p['condition']['time_out'],
    'final_layer.adaLN_modulation.1': p['final_adaln']['modulation'],
    'final_layer.linear': p['patch_out'],
  }
  parts = {
    'attn.qkv': {
      'kernel': qkv['kernel'].reshape(depth, width, 3 * width),
      'bias': qkv['bias'].reshape(depth, 3 * width),
    },
    'attn.proj': p['blocks']['attention_out'],
    'mlp.fc1': p['blocks']['mlp_in'],
    'mlp.fc2': p['blocks']['mlp_out'],
    'adaLN_modulation.1': p['blocks']['adaln']['modulation'],
  }
  for i in range(depth):
    linear |= {f'blocks.{i}.{k}': {n: x[i] for n, x in v.items()} for k, v in parts.items()}
  state = {f'{name}.weight': value['kernel'].T for name, value in linear.items()}
  state |= {f'{name}.bias': value['bias'] for name, value in linear.items()}
  rows = len(p['patch_in']['kernel'])
  patches = p['patch_in']['kernel'].reshape(2, 2, rows // 4, width)  # (row, column, channel, d)
  state['x_embedder.proj.weight'] = patches.transpose(3, 2, 0, 1)
  state['x_embedder.proj.bias'] = p['patch_in']['bias']
  state['y_embedder.embedding_table.weight'] = p['condition']['label']['embedding']
  save_file({name: np.ascontiguousarray(values) for name, values in state.items()}, path)
  return path


def write_workdir(folder, experiment, scaling=None):
  """As training leaves it: the average is `random_params`, the raw parameters are not."""
  params = random_params(experiment)
  state = jax.jit(experiment.init_state)(scaling)
  state = state.replace(averages={'ema': {'model': jax.tree.map(jnp.asarray, params)}})
  folder.mkdir(parents=True, exist_ok=True)
  stored.save(folder, experiment.mapping)
  checkpoints = open_checkpoints(experiment, folder)
  checkpoints.save(3, state, {})
  checkpoints.close()
  return params


def recorded():
  with np.load(FIXTURE) as file:
    return json.loads(str(file['names']))


def write_diffusers(folder):
  names = recorded()
  folder.mkdir()
  save_file(tied(weights(names['dit'])), folder / diffusers.FILES[0])
  (folder / 'config.json').write_text(json.dumps(names['configs']['dit']))
  return folder


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_nothing_is_read_without_the_field(tmp_path):
  assert initial.load(make(tmp_path)) is None


def test_published_weights_come_back_as_they_were(tmp_path):
  params = random_params(make(tmp_path))
  experiment = make(tmp_path, write_published(tmp_path / 'dit.safetensors', params))
  given = initial.load(experiment)
  assert_same(given.params, params)
  state = new_state(experiment, given)
  assert_same(state.params['model'], params)
  assert_same(state.averages['ema']['model'], params)
  assert int(state.step) == 0 and not any(np.any(x) for x in jax.tree.leaves(state.opt_states))
  abstract = experiment.abstract_state
  jax.tree.map(
    lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim) or 1 / 0, state, abstract
  )


def test_both_forms_of_the_recorded_weights_are_one_model(tmp_path):
  """Those of diffusers and of the authors differ in the time frequencies only."""
  folder, path = write_diffusers(tmp_path / 'transformer'), tmp_path / 'dit.safetensors'
  save_file(published(tied(weights(recorded()['dit'])), 2), path)
  of_diffusers = initial.load(
    make(tmp_path, folder, **RECORDED, **{'model.dit.frequency_shift': 1})
  )
  given = initial.load(make(tmp_path, path, **RECORDED))
  assert_same(given.params, of_diffusers.params)
  assert given.scaling is None
  (note,) = given.notes
  assert '--config.vae.scale=0.18215 and --config.vae.shift=none, here: measured and none' in note
  scaled = make(
    tmp_path, path, **{**RECORDED, 'vae.scale': 0.18215, 'process.prediction_type': 'v'}
  )
  (note,) = initial.load(scaled).notes
  assert 'config.process.prediction_type eps' in note and note.endswith('here: v and linear')


@pytest.mark.unoptimised
@pytest.mark.parametrize('model', ['dit', pytest.param('unet', marks=pytest.mark.full)])
def test_a_work_directory_of_other_classes(tmp_path, model):
  """Of the label table only the last row is kept; the others are the seed's."""
  params = write_workdir(tmp_path / 'there', make(tmp_path, **{'model.name': model}))
  experiment = make(tmp_path, tmp_path / 'there', **{'model.name': model, 'num_classes': 4})
  given = initial.load(experiment)
  assert given.notes == (
    "label table: 4 classes here, 10 there: rows initialised anew, the null label's kept",
  )
  state = new_state(experiment, given)
  found, expected = flatten_dict(state.averages['ema']['model']), flatten_dict(params)
  table, theirs = found.pop(LABELS), expected.pop(LABELS)
  assert_same(found, expected)
  fresh = make(tmp_path, **{'model.name': model, 'num_classes': 4})
  fresh = flatten_dict(new_state(fresh, None).params['model'])[LABELS]
  np.testing.assert_array_equal(table[:-1], fresh[:-1])
  np.testing.assert_array_equal(table[-1], theirs[-1])
  assert table.shape == (5, theirs.shape[1]) and not np.array_equal(fresh[-1], theirs[-1])


def test_as_many_classes_that_are_others(tmp_path):
  experiment = make(tmp_path, tmp_path / 'there')
  preparation.ensure(experiment, tmp_path / 'prepared')
  params = write_workdir(tmp_path / 'there', make(tmp_path))
  for names, notes, rows in (
    (list(experiment.label_names), (), 11),
    (
      list('abcdefghij'),
      (
        'label table: 10 classes here, 10 others there: rows initialised anew, '
        "the null label's kept",
      ),
      1,
    ),
  ):
    stored.save_meta(
      tmp_path / 'there', {**experiment.meta, 'fingerprint': '', 'label_names': names}
    )
    given = initial.load(experiment)
    assert given.notes == notes
    np.testing.assert_array_equal(
      flatten_dict(given.params)[LABELS], flatten_dict(params)[LABELS][-rows:]
    )


@pytest.mark.parametrize(
  'model, changes',
  [
    ('dit', {'model.dit.remat': 'blocks'}),
    pytest.param(
      'unet', {'model.unet.remat': 'blocks', 'model.unet.dropout': 0.5}, marks=pytest.mark.full
    ),
  ],
)
def test_options_that_parameters_do_not_depend_on_may_differ(tmp_path, model, changes):
  there = make(tmp_path, **{'model.name': model})
  params = write_workdir(tmp_path / 'there', there)
  given = initial.load(make(tmp_path, tmp_path / 'there', **{'model.name': model}, **changes))
  assert_same(given.params, params)
  sizes = given_sizes.of_workdir(tmp_path / 'there', 'pixel')
  own = {p for p in sizes if p.startswith(f'model.{model}.')}
  everything = {f'model.{model}.{name}' for name in there.config.model.options}
  speed = {f'model.{model}.{name}' for name in ('attention', 'unroll')}
  assert own == everything - speed - {*changes}


def test_with_and_without_labels(tmp_path):
  write_workdir(tmp_path / 'labels', make(tmp_path))
  given = initial.load(make(tmp_path, tmp_path / 'labels', num_classes=0))
  assert given.notes == ('label table: none here, that of the weights is left out',)
  assert LABELS not in flatten_dict(given.params)
  write_workdir(tmp_path / 'none', make(tmp_path, num_classes=0))
  experiment = make(tmp_path, tmp_path / 'none')
  given = initial.load(experiment)
  assert given.notes == ('label table: 10 classes here, none there: all rows initialised anew',)
  table = flatten_dict(new_state(experiment, given).params['model'])[LABELS]
  np.testing.assert_array_equal(
    table, flatten_dict(new_state(make(tmp_path), None).params['model'])[LABELS]
  )


@pytest.mark.parametrize(
  'changes, lines',
  [
    ({'model.dit.patch_size': 4}, ['config.model.dit.patch_size: got 4, the file has 2']),
    (
      {'model.dit.hidden_size': 48, 'model.dit.num_heads': 3, 'model.dit.depth': 1},
      [
        'config.model.dit.hidden_size: got 48, the file has 32',
        'config.model.dit.depth: got 1, the file has 2',
      ],
    ),
    (
      {'process.learned_variance': True, 'schedule.name': 'linear'},
      [
        'config.process.learned_variance: got True, so 2 output channels for 1 of x0, the file has 1'
      ],
    ),
    (
      {'data.channels': 3},
      [
        'config.data.channels: got 3 (config.process.learned_variance False), so 3 output channels '
        'for 3 of x0, the file has 1'
      ],
    ),
    (
      {'model.dit.frequency_shift': 1},
      [
        'config.model.dit.frequency_shift: got 1, the file has 0 (1 in files of diffusers, 0 in '
        'those of the authors)'
      ],
    ),
    ({'model.name': 'unet'}, ["config.model.name: got 'unet', the weights are those of a DiT"]),
  ],
)
def test_another_model_is_named_field_by_field(tmp_path, changes, lines):
  path = write_published(tmp_path / 'dit.safetensors', random_params(make(tmp_path)))
  with pytest.raises(InputError) as caught:
    initial.load(make(tmp_path, path, **changes))
  told = f'config.init_from: {path}: the weights belong to another model than this config:'
  assert str(caught.value) == '\n  '.join([told, *lines])


def test_the_time_frequencies_of_diffusers_are_named(tmp_path):
  folder = write_diffusers(tmp_path / 'transformer')
  with pytest.raises(
    InputError, match=r'frequency_shift: got 0, the file has 1 \(1 in files of dif'
  ):
    initial.load(make(tmp_path, folder, **RECORDED))
  config = json.loads((folder / 'config.json').read_text())
  del config['num_layers']
  (folder / 'config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match=r'config\.json: it lacks num_layers'):
    initial.load(make(tmp_path, folder, **RECORDED))


def test_arrays_of_other_shapes_are_named_with_both(tmp_path):
  """The same outputs, of fewer channels and their variance: no field of the module says so."""
  there = make(tmp_path, **RECORDED, **{'vae.scale': 1.0})
  path = write_published(tmp_path / 'dit.safetensors', random_params(there))
  wide = {**RECORDED, 'vae.embed_channels': 8, 'process.learned_variance': False}
  with pytest.raises(
    InputError, match=r'patch_in/kernel: \(32, 32\) here, the file has \(16, 32\)'
  ):
    initial.load(make(tmp_path, path, **wide))


@pytest.mark.parametrize(
  'changes, message',
  [
    (
      {'process.prediction_type': 'x0'},
      r"config\.process\.prediction_type: got 'x0', trained with 'v'",
    ),
    (LATENT, r"config\.space: got 'latent', trained with 'pixel'"),
  ],
)
def test_a_work_directory_of_another_process(tmp_path, changes, message):
  write_workdir(tmp_path / 'there', make(tmp_path))
  with pytest.raises(InputError, match=message):
    initial.load(make(tmp_path, tmp_path / 'there', **changes))


def test_another_schedule_is_told(tmp_path):
  write_workdir(tmp_path / 'there', make(tmp_path))
  given = initial.load(make(tmp_path, tmp_path / 'there', **{'schedule.name': 'linear'}))
  assert len(given.notes) == 1 and given.notes[0].startswith('config.schedule: linear {')
  assert ', there cosine {' in given.notes[0]


def test_a_latent_work_directory_gives_its_scaling(tmp_path):
  vae = {**LATENT, 'vae.checkpoint': str(write_autoencoder(tmp_path))}
  fingerprint = make(tmp_path, **vae).first_stage.fingerprint
  there = make(tmp_path, **vae, **{'vae.fingerprint': fingerprint})
  scaling = Scaling(jnp.float32([0.5, 0, -1]), jnp.float32(0.25))
  write_workdir(tmp_path / 'there', there, scaling)
  experiment = make(tmp_path, tmp_path / 'there', **vae)
  given = initial.load(experiment)
  assert given.notes == ('latents: scale 0.25000 and shift [0.5, 0.0, -1.0] as there',)
  assert_same(new_state(experiment, given).scaling, scaling)
  given = initial.load(make(tmp_path, tmp_path / 'there', **vae, **{'vae.scale': 2.0}))
  assert_same(given.scaling, scaling._replace(scale=jnp.float32(2.0)))
  assert given.notes == ('latents: scale 2.00000 of config.vae.scale, there 0.25000',)
  with pytest.raises(InputError, match=r"config\.vae\.shift: got 'channel', trained with 'none'"):
    initial.load(make(tmp_path, tmp_path / 'there', **{**vae, 'vae.shift': 'channel'}))
  other = write_autoencoder(tmp_path / 'other', seed='other')
  with pytest.raises(InputError, match=f'trained with {fingerprint}, whose latents mean something'):
    initial.load(make(tmp_path, tmp_path / 'there', **{**vae, 'vae.checkpoint': str(other)}))


def test_pickles_need_leave(tmp_path):
  torch = pytest.importorskip('torch')
  state = {
    k: torch.from_numpy(np.ascontiguousarray(v))
    for k, v in published(tied(weights(recorded()['dit'])), 2).items()
  }
  path = tmp_path / 'dit.pt'
  torch.save({'model': state, 'ema': state, 'opt': {}}, path)
  with pytest.raises(InputError, match=r'a pickle.*--config\.allow_pickle=True'):
    initial.load(make(tmp_path, path, **RECORDED))
  given = initial.load(make(tmp_path, path, **RECORDED, allow_pickle=True))
  assert given.origin == str(path)


def test_damaged_weights(tmp_path):
  path = write_published(tmp_path / 'dit.safetensors', random_params(make(tmp_path)))
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(DamagedError, match=r'dit\.safetensors: not a whole') as caught:
    initial.load(make(tmp_path, path))
  assert caught.value.exit_code == 3
  write_workdir(tmp_path / 'there', make(tmp_path))
  (data,) = (tmp_path / 'there' / 'checkpoints' / '3').glob('state/d')
  shutil.rmtree(data)
  with pytest.raises(DamagedError, match='no usable checkpoint in'):
    initial.load(make(tmp_path, tmp_path / 'there'))


def test_what_is_no_model(tmp_path):
  (tmp_path / 'empty').mkdir()
  autoencoder = {
    'objective.name': 'autoencoder',
    'checkpoint.best_metric': 'holdout_psnr',
    **AUTOENCODER,
  }
  for name, changes in (('vae', autoencoder), ('begun', {}), ('old', {})):
    (tmp_path / name).mkdir()
    stored.save(tmp_path / name, make(tmp_path, **changes).mapping)
  old = json.loads((tmp_path / 'old' / 'config.json').read_text())
  old['process']['prediction_type'] = 'noise'
  (tmp_path / 'old' / 'config.json').write_text(json.dumps(old))
  params = random_params(make(tmp_path))
  params['condition']['label']['embedding'] = params['condition']['label']['embedding'][1:]
  write_published(tmp_path / 'no-null.safetensors', params)
  save_file({'x': np.zeros(2, np.float32)}, tmp_path / 'other.safetensors')
  blocks = {'blocks.0.attn.proj.bias': np.zeros(3, np.float32)}
  state = published(tied(weights(recorded()['dit'])), 2)
  save_file({**state, **blocks}, tmp_path / 'uneven.safetensors')
  for path, message in (
    ('gone', r'config\.init_from: .*gone: no such file or directory; give a published DiT'),
    ('empty', r'no config\.json in it; give a published DiT'),
    ('vae', r"vae: trained with config\.objective\.name 'autoencoder'; give a published DiT"),
    ('begun', 'no finished checkpoint in it'),
    ('old', r'its config\.json does not fit this version: config\.process\.prediction_type'),
    ('other.safetensors', r'no DiT as published, it lacks x_embedder\.proj\.weight'),
    ('no-null.safetensors', r'has 10 rows, allowed 11 with config\.num_classes 10: the last one'),
    (
      'uneven.safetensors',
      r'uneven\.safetensors: does not fit(.|\n)*blocks\.1\.attn\.proj\.bias gives',
    ),
  ):
    with pytest.raises(InputError, match=message):
      initial.load(make(tmp_path, tmp_path / path))
  with pytest.raises(InputError, match=r"allowed '' with config\.objective\.name 'autoencoder'"):
    initial.load(make(tmp_path, tmp_path / 'vae', **autoencoder))


def test_labels_without_data(tmp_path):
  """1,000 classes are ImageNet's by WNID; a list of the user's names its own; else numbers."""
  assert datasets.meta_without_data(make(tmp_path).config)['label_names'][:2] == [
    'class 0',
    'class 1',
  ]
  names = datasets.meta_without_data(make(tmp_path, num_classes=1000).config)['label_names']
  assert names[0] == 'tench' and names[207] == 'golden retriever' and len(names) == 1000
  meta = datasets.meta_without_data(make(tmp_path, **{'data.class_list': 'cmc'}).config)
  assert len(meta['label_names']) == 100 and meta['fingerprint'] == ''
