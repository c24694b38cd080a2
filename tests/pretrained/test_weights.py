"""Published layouts give what another implementation computes; what does not fit is named.

The expected values are those of diffusers: recorded by tests/fixtures/make_weight_parity.py, and live
where it is installed.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.pretrained import compvis, diffusers, dit
from diffusion_jax.runtime.cost import num_parameters
from tests.fixtures.parity_weights import values, weights
from tests.support.alone import alone

FIXTURE = Path(__file__).parents[1] / 'fixtures' / 'weight_parity.npz'
TOLERANCE = 1e-5


@pytest.fixture(scope='module')
def recorded():
  with np.load(FIXTURE) as file:
    return {**{name: file[name] for name in file.files}, 'names': json.loads(str(file['names']))}


@pytest.fixture
def folders(recorded, tmp_path):
  """kind -> what a user would download."""
  found = {}
  for kind in ('autoencoder', 'dit'):
    folder = tmp_path / kind
    folder.mkdir()
    state = weights(recorded['names'][kind])
    if kind == 'dit':
      state = tied(state)
    save_file(state, folder / diffusers.FILES[0])
    (folder / 'config.json').write_text(json.dumps(recorded['names']['configs'][kind]))
    found[kind] = folder
  found['compvis'] = tmp_path / 'kl-f4.safetensors'
  save_file(weights(recorded['names']['compvis']), found['compvis'])
  return found


def tied(state):
  """Every block's embedders as those of the first."""
  first = 'transformer_blocks.0.'
  return {
    k: state[first + k.split('.', 2)[2]] if '.norm1.emb.' in k else v for k, v in state.items()
  }


def published(state, depth):
  """The DiT's arrays under the names and layouts of its authors' files."""
  embedder = 'transformer_blocks.0.norm1.emb'
  names = {
    'x_embedder.proj': 'pos_embed.proj',
    't_embedder.mlp.0': f'{embedder}.timestep_embedder.linear_1',
    't_embedder.mlp.2': f'{embedder}.timestep_embedder.linear_2',
    'final_layer.adaLN_modulation.1': 'proj_out_1',
    'final_layer.linear': 'proj_out_2',
  }
  out = {f'{k}.{p}': state[f'{v}.{p}'] for k, v in names.items() for p in ('weight', 'bias')}
  table = f'{embedder}.class_embedder.embedding_table.weight'
  out['y_embedder.embedding_table.weight'] = state[table]
  for i in range(depth):
    theirs, ours = f'transformer_blocks.{i}', f'blocks.{i}'
    parts = {
      'adaLN_modulation.1': 'norm1.linear',
      'attn.proj': 'attn1.to_out.0',
      'mlp.fc1': 'ff.net.0.proj',
      'mlp.fc2': 'ff.net.2',
    }
    for p in ('weight', 'bias'):
      out |= {f'{ours}.{k}.{p}': state[f'{theirs}.{v}.{p}'] for k, v in parts.items()}
      qkv = [state[f'{theirs}.attn1.to_{name}.{p}'] for name in 'qkv']
      out[f'{ours}.attn.qkv.{p}'] = np.concatenate(qkv)
  return out


def assert_close(found, expected):
  error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
  assert error <= TOLERANCE, error


def assert_autoencoder(module, params, recorded, kind):
  apply = jax.jit(module.apply, static_argnames='method')
  posterior = apply({'params': params}, values('images', (2, 16, 16, 3)), method='encode')
  assert_close(posterior.mean, recorded[f'{kind}_mean'])
  assert_close(posterior.logvar, recorded[f'{kind}_logvar'])
  latents = values('latents', (2, 4, 4, 3))
  assert_close(apply({'params': params}, latents, method='decode'), recorded[f'{kind}_decoded'])


def dit_output(module, params):
  x = values('x', (3, 8, 8, 4))
  time, labels = jnp.asarray([0.0, 421.0, 999.0]), jnp.asarray([0, 7, 10])
  return jax.jit(module.apply)({'params': params}, x, time, {'label': labels})


def test_autoencoder_of_diffusers(folders, recorded):
  module, params = diffusers.load(folders['autoencoder'])
  assert_autoencoder(module, params, recorded, 'autoencoder')


def test_autoencoder_of_compvis(folders, recorded):
  assert_autoencoder(*compvis.load(folders['compvis']), recorded, 'compvis')


def test_dit_of_diffusers(folders, recorded):
  module, params = diffusers.load(folders['dit'])
  assert module.frequency_shift == 1
  assert_close(dit_output(module, params), recorded['dit'])


def test_dit_as_published(folders, recorded, tmp_path):
  """The same arrays under the authors' names; only their time frequencies differ."""
  state = tied(weights(recorded['names']['dit']))
  path = tmp_path / 'dit.safetensors'
  save_file(published(state, 2), path)
  module, params = dit.load(path, num_heads=2)
  assert module.frequency_shift == 0
  assert_close(dit_output(module.clone(frequency_shift=1), params), recorded['dit'])
  assert not np.allclose(dit_output(module, params), recorded['dit'], atol=0.05)


@pytest.mark.parametrize('width, heads', [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_heads_of_the_published_sizes(width, heads):
  """DiT-S, B, L and XL (Peebles & Xie 2023, Table 1); the file does not say."""
  assert dit.heads_of(width) == heads


def test_names_of_attention_layers_before_2023(folders, recorded):
  file = folders['autoencoder'] / diffusers.FILES[0]
  old = {}
  for name, array in weights(recorded['names']['autoencoder']).items():
    for before, after in diffusers.OLD_NAMES.items():
      name = name.replace(f'attentions.0.{after}.', f'attentions.0.{before}.')
    old[name] = array
  assert any('proj_attn' in name for name in old)
  save_file(old, file)
  assert_autoencoder(*diffusers.load(folders['autoencoder']), recorded, 'autoencoder')


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['autoencoder', 'dit'])
def test_live_against_the_installed_library(folders, recorded, kind, request):
  if not alone(request):
    return
  library = pytest.importorskip('diffusers')
  torch = pytest.importorskip('torch')
  classes = {'autoencoder': library.AutoencoderKL, 'dit': library.DiTTransformer2DModel}
  theirs = classes[kind].from_pretrained(folders[kind]).eval()
  module, params = diffusers.load(folders[kind])
  with torch.no_grad():
    if kind == 'dit':
      x = torch.from_numpy(values('x', (3, 8, 8, 4))).permute(0, 3, 1, 2)
      times, labels = torch.tensor([0, 421, 999]), torch.tensor([0, 7, 10])
      expected = theirs(x, timestep=times, class_labels=labels).sample.permute(0, 2, 3, 1)
      assert_close(dit_output(module, params), expected.numpy())
    else:
      x = torch.from_numpy(values('images', (2, 16, 16, 3))).permute(0, 3, 1, 2)
      expected = theirs.encode(x).latent_dist.mean.permute(0, 2, 3, 1).numpy()
      found = module.apply({'params': params}, values('images', (2, 16, 16, 3)), method='encode')
      assert_close(found.mean, expected)


def test_pickles_need_leave(recorded, tmp_path):
  torch = pytest.importorskip('torch')
  state = {k: torch.from_numpy(v) for k, v in weights(recorded['names']['compvis']).items()}
  path = tmp_path / 'model.ckpt'
  extra = {'loss.discriminator.main.0.weight': torch.zeros(1)}
  torch.save({'state_dict': {**state, **extra}, 'epoch': 3}, path)
  with pytest.raises(InputError, match=f'{path}: a pickle.*allow_pickle=True'):
    compvis.load(path)
  assert_autoencoder(*compvis.load(path, allow_pickle=True), recorded, 'compvis')
  path.write_bytes(path.read_bytes()[:-2000])
  with pytest.raises(DamagedError, match=str(path)):
    compvis.load(path, allow_pickle=True)


def test_a_pickle_with_code_in_it_is_not_run(tmp_path):
  torch = pytest.importorskip('torch')
  ran = tmp_path / 'ran'

  class Evil:
    def __reduce__(self):
      return (Path.touch, (ran,))

  torch.save({'state_dict': {'x': Evil()}}, tmp_path / 'model.ckpt')
  with pytest.raises(DamagedError, match='tensors alone'):
    compvis.load(tmp_path / 'model.ckpt', allow_pickle=True)
  assert not ran.exists()


def test_the_average_is_preferred_in_training_files(recorded, tmp_path):
  torch = pytest.importorskip('torch')
  state = published(tied(weights(recorded['names']['dit'])), 2)
  ema = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in state.items()}
  raw = {k: torch.zeros_like(v) for k, v in ema.items()}
  torch.save({'model': raw, 'ema': ema, 'opt': {}, 'args': None}, tmp_path / 'dit.pt')
  module, params = dit.load(tmp_path / 'dit.pt', allow_pickle=True, num_heads=2)
  assert_close(dit_output(module.clone(frequency_shift=1), params), recorded['dit'])


@pytest.mark.parametrize('kind', ['autoencoder', 'compvis', 'dit'])
def test_what_does_not_fit_is_named_with_both_shapes(folders, recorded, kind):
  file = folders[kind] if kind == 'compvis' else folders[kind] / diffusers.FILES[0]
  load = {'compvis': compvis.load}.get(kind, diffusers.load)
  state = weights(recorded['names'][kind])
  state = tied(state) if kind == 'dit' else state
  victims = [n for n in state if n.endswith('weight') and ('conv1' in n or 'ff.net.0' in n)]
  gone, wrong = victims[0], victims[-1]
  assert gone != wrong
  state['a.stranger'] = np.zeros((2, 3), np.float32)
  del state[gone]
  state[wrong] = np.concatenate([state[wrong]] * 2)
  if 'ff.net' in wrong:  # Of stacked blocks all are given the wrong shape, or they would not stack.
    for name in victims[1:]:
      state[name] = state[wrong]
  save_file(state, file)
  with pytest.raises(InputError) as caught:
    load(folders[kind])
  text = str(caught.value)
  assert str(file) in text and f'missing {gone}' in text and 'unexpected a.stranger (2, 3)' in text
  if kind != 'dit':
    assert wrong in text and text.count('(3, 3, ') >= 2


def test_blocks_with_embedders_of_their_own_are_refused(folders, recorded):
  save_file(weights(recorded['names']['dit']), folders['dit'] / diffusers.FILES[0])
  with pytest.raises(InputError, match=r'differs from transformer_blocks\.0\.norm1\.emb'):
    diffusers.load(folders['dit'])


def test_other_positions_are_refused(recorded, tmp_path):
  state = published(tied(weights(recorded['names']['dit'])), 2)
  state['pos_embed'] = np.zeros((1, 16, 32), np.float32)
  save_file(state, tmp_path / 'dit.safetensors')
  with pytest.raises(InputError, match=r'pos_embed \(1, 16, 32\) is not the published'):
    dit.load(tmp_path / 'dit.safetensors', num_heads=2)


@pytest.mark.parametrize(
  'make, error, message',
  [
    (lambda p: None, InputError, 'config.json: no such file'),
    (lambda p: (p / 'model_index.json').write_text('{}'), InputError, 'whole pipeline.*vae'),
    (lambda p: (p / 'config.json').write_text('{'), DamagedError, 'config.json: not JSON'),
    (
      lambda p: (p / 'config.json').write_text('{"_class_name": "FluxModel"}'),
      InputError,
      'a FluxModel; allowed AutoencoderKL, DiTTransformer2DModel',
    ),
    (
      lambda p: (p / 'config.json').write_text('{"_class_name": "AutoencoderKL"}'),
      InputError,
      'neither diffusion_pytorch_model.safetensors nor',
    ),
  ],
)
def test_directories_that_are_not_what_is_asked(tmp_path, make, error, message):
  make(tmp_path)
  with pytest.raises(error, match=message):
    diffusers.load(tmp_path)


def test_files_that_are_not_what_is_asked(tmp_path):
  with pytest.raises(InputError, match='no such file'):
    compvis.load(tmp_path / 'gone.safetensors')
  path = tmp_path / 'x.safetensors'
  path.write_bytes(b'torn')
  with pytest.raises(DamagedError, match='not a whole safetensors file'):
    compvis.load(path)
  save_file({'a': np.zeros(2, np.float32)}, path)
  with pytest.raises(InputError, match='no KL autoencoder of CompVis'):
    compvis.load(path)
  with pytest.raises(InputError, match='no DiT as published'):
    dit.load(path)
  with pytest.raises(InputError, match=r"got suffix '\.msgpack'"):
    (tmp_path / 'x.msgpack').touch()
    compvis.load(tmp_path / 'x.msgpack')


def test_parameters_are_as_many_as_the_file_has(folders, recorded):
  _, params = compvis.load(folders['compvis'])
  stored = sum(int(np.prod(shape)) for shape in recorded['names']['compvis'].values())
  assert num_parameters(params) == stored


@pytest.mark.parametrize('legacy', [False, True])
def test_no_broken_pickle_is_a_traceback(tmp_path, legacy):
  """Cut anywhere, or a byte changed anywhere: damaged, or still readable as tensors."""
  import torch

  path, rng = tmp_path / 'model.ckpt', np.random.default_rng(0)
  state = {'state_dict': {f'layer.{i}.weight': torch.ones(3, 2) for i in range(3)}}
  torch.save(state, path, _use_new_zipfile_serialization=not legacy)
  whole, damaged = path.read_bytes(), 0
  broken = [whole[: len(whole) * i // 40] for i in range(40)]
  for place in rng.integers(0, len(whole), 60):
    byte = bytes([whole[place] ^ int(rng.integers(1, 256))])
    broken.append(whole[:place] + byte + whole[place + 1 :])
  for content in [*broken, b'hello', b'']:
    path.write_bytes(content)
    try:
      compvis.load(path, allow_pickle=True)
    except DamagedError as error:
      damaged += 1
      assert 'weights_only' not in str(error)
    except InputError:  # Whole, but no autoencoder.
      pass
  assert damaged >= 40
