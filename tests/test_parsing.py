"""A config.json as --config, the config of a work directory, and fields that do not exist."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from safetensors.numpy import save_file

from configs import base
from diffusion_jax import usage
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import given_sizes, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.resolve import remembered
from diffusion_jax.parsing import parse
from diffusion_jax.runtime import files
from tests.conftest import tiny_mapping

ROOT = Path(__file__).parents[1]
FIELDS = list(usage.leaves(base.get_config().to_dict()))


def parsed(*arguments):
  from ml_collections import config_flags

  values, argv = flags.FlagValues(), ['main.py', *arguments]
  config_flags.DEFINE_config_file('config', None, '', flag_values=values, sys_argv=argv)
  flags.DEFINE_string('workdir', None, '', flag_values=values)
  flags.DEFINE_string('mode', 'train', '', flag_values=values)
  return parse(argv, values)


def begun(folder, mapping):
  """A work directory that was trained, as far as its config is concerned."""
  (folder / 'checkpoints' / '4').mkdir(parents=True)
  stored.save(folder, mapping)
  return folder


def test_a_work_directory_needs_no_config_and_takes_typed_overrides(tmp_path):
  mapping = tiny_mapping(tmp_path, **{'mesh.rules': (('mlp', ('', 'fsdp')),)})
  stored.save(tmp_path, mapping)
  for given in (f'--workdir={tmp_path}', f'--config={tmp_path}/config.json'):
    config, overrides = parsed(
      given, '--config.sample.cfg_scale=2', '--config.sample.labels=(3, 1)'
    )
    assert overrides == {'sample.cfg_scale': 2.0, 'sample.labels': (3, 1)}
    assert config['model'] == mapping['model'] and config['mesh'] == mapping['mesh']
    assert create(config).config.sample.cfg_scale == 2.0
    with pytest.raises(InputError, match=r'batch_size'):
      parsed(given, '--config.train.batch_size=many')
    with pytest.raises(InputError, match=r"--config\.optimizer\.lr: .*'optimizer\.learning_rate'"):
      parsed(given, '--config.optimizer.lr=1')
  with pytest.raises(InputError, match=r'--config is missing, and .*gone/config\.json'):
    parsed(f'--workdir={tmp_path}/gone')
  assert parsed(f'--workdir={tmp_path}', '--mode=report')[0]['data']['name'] == 'digits'


@pytest.mark.parametrize(
  'content', ['[]', '{', '3', '{}', '{"model": []}', '{"sampler": {"ddim": 5}}']
)
def test_a_config_json_that_is_none_is_named(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  for read in (lambda: stored.load(tmp_path), lambda: parsed(f'--workdir={tmp_path}')):
    with pytest.raises(DamagedError, match=r'config\.json'):
      read()


@pytest.mark.parametrize('content', ['[]', '{', '3', '{}', '{"fingerprint": []}'])
def test_a_data_json_that_is_none_counts_as_missing(tmp_path, content):
  (tmp_path / 'data.json').write_text(content)
  assert stored.load_meta(tmp_path, 'a' * 16) is None


def test_a_value_of_another_type_is_named(tmp_path):
  stored.save(tmp_path, tiny_mapping(tmp_path) | {'seed': 'zero'})
  with pytest.raises(InputError, match=r"config\.seed: got 'zero'"):
    parsed(f'--workdir={tmp_path}')


def test_a_field_that_no_longer_exists_is_left_out_alike_everywhere(tmp_path):
  mapping = tiny_mapping(tmp_path)
  old = json.loads(json.dumps(mapping))
  for section, field in (
    (old, 'gone'),
    (old['train'], 'gone'),
    (old['model']['dit'], 'gone'),
    (old['sampler']['ddpm'], 'gone'),
    (old['eval'], 'gone'),
  ):
    section[field] = 1
  stored.save(tmp_path, old)
  kept, lost = stored.read(tmp_path / 'config.json')
  names = ('eval.gone', 'gone', 'model.dit.gone', 'sampler.ddpm.gone', 'train.gone')
  assert lost == [f'config.{name}' for name in names]
  assert create(kept).config == create(mapping).config
  assert stored.changes(tmp_path, mapping) == []
  assert create(stored.merged(tmp_path, mapping, {})).config == create(mapping).config
  with pytest.raises(InputError, match=r"config\.train: unknown field: got 'gone'"):
    create(old)  # As a config file that has it.


def test_settings_come_from_flags_then_from_training_then_from_the_config_file(tmp_path, capsys):
  trained = tiny_mapping(tmp_path, **{'sample.num_steps': 7, 'sample.cfg_scale': 3.0})
  begun(tmp_path, trained)
  given = tiny_mapping(tmp_path, **{'sample.num_steps': 9})
  for config in (
    stored.merged(tmp_path, given, {'sample.num_steps': 9}),
    remembered(tmp_path, given, {'sample.num_steps': 9}),
  ):
    assert (config['sample']['num_steps'], config['sample']['cfg_scale']) == (9, 3.0)
  assert 'config.sample.cfg_scale: 3.0, not 1.0' in capsys.readouterr().err
  assert remembered(tmp_path, given, {})['sample']['num_steps'] == 7


def test_sizes_come_from_init_from_unless_a_flag_gives_them(tmp_path):
  there = begun(tmp_path / 'there', tiny_mapping(tmp_path, **{'process.prediction_type': 'x0'}))
  wide = {'model.dit.hidden_size': 64, 'model.dit.remat': 'blocks', 'init_from': str(there)}
  mapping = tiny_mapping(tmp_path, **wide)
  config = remembered(tmp_path / 'new', mapping, {})
  assert config['model']['dit'] == {**mapping['model']['dit'], 'hidden_size': 32}
  assert config['process']['prediction_type'] == 'x0'
  kept = remembered(tmp_path / 'new', mapping, {'model.dit.hidden_size': 64})
  assert kept['model']['dit']['hidden_size'] == 64
  # The same command resumes, also when the weights are gone.
  resumed = begun(tmp_path / 'run', {**config, 'init_from': str(tmp_path / 'gone')})
  again = remembered(resumed, {**mapping, 'init_from': str(tmp_path / 'gone')}, {})
  assert again['model']['dit'] == config['model']['dit']


def test_sizes_of_a_published_file_and_of_a_diffusers_directory(tmp_path):
  arrays = {
    'x_embedder.proj.weight': (1152, 4, 2, 2),
    'final_layer.linear.weight': (32, 1152),
    'blocks.0.mlp.fc1.bias': (4608,),
    'blocks.2.mlp.fc1.bias': (4608,),
  }
  path = tmp_path / 'dit.safetensors'
  save_file({name: np.zeros(shape, np.float16) for name, shape in arrays.items()}, path)
  mapping = tiny_mapping(tmp_path, init_from=str(path), **{'model.dit.patch_size': 1})
  config, changed = given_sizes.adopt(mapping, {'model.dit.patch_size': 1})
  wanted = dict(
    patch_size=1, hidden_size=1152, depth=3, num_heads=16, mlp_ratio=4.0
  )  # As published.
  assert {name: config['model']['dit'][name] for name in wanted} == wanted
  assert config['process']['learned_variance'] and 'config.model.dit.depth: 2 -> 3' in changed
  (tmp_path / 'diffusers').mkdir()
  sizes = dict(num_attention_heads=6, attention_head_dim=64, num_layers=5, patch_size=2)
  sizes |= dict(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, sample_size=32)
  (tmp_path / 'diffusers' / 'config.json').write_text(json.dumps(sizes))
  config, _ = given_sizes.adopt({**mapping, 'init_from': str(tmp_path / 'diffusers')}, {})
  wanted = dict(patch_size=2, hidden_size=384, depth=5, num_heads=6, frequency_shift=1)
  assert {name: config['model']['dit'][name] for name in wanted} == wanted


@pytest.mark.parametrize(
  'got, meant',
  [
    ('optimizer.lr', 'optimizer.learning_rate'),
    ('batch_size', 'train.batch_size'),
    ('model.depth', 'model.dit.depth'),
    ('train.steps', 'train.num_steps'),
    ('trian.batch_size', 'train.batch_size'),
    ('model.dit.dept', 'model.dit.depth'),
    ('sample.label', 'sample.labels'),
  ],
)
def test_the_nearest_field_anywhere(got, meant):
  assert usage.nearest_fields(got, FIELDS)[0] == meant


def test_nothing_near_is_nothing_suggested():
  assert usage.nearest_fields('zzz.q', FIELDS) == []


def test_help_names_modes_fields_and_examples_and_loads_nothing_heavy():
  program = (
    "import sys; sys.argv = ['main.py', '--help']; import main; code = main.main(); "
    "print({'jax', 'numpy', 'tensorflow', 'flax', 'torch'} & {*sys.modules}, code)"
  )
  out = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout
  assert out.endswith('set() 0\n')
  for mode in usage.modes():
    assert f'{mode} ' in out and len(usage.summary(mode)) > 10
  common = usage.common_fields()
  assert {*common} <= {*FIELDS} and {'train.num_steps', 'model.name', 'dtype'} <= {*common}
  for field, comment in common.items():
    assert f'--config.{field}=' in out and comment in ' '.join(out.split())


@pytest.mark.parametrize('value', [float('inf'), float('nan')])
def test_floats_are_finite(tmp_path, value):
  for field in ('optimizer.weight_decay', 'model.dit.mlp_ratio'):
    with pytest.raises(InputError, match=rf'config\.{field}: got {value}'):
      create(tiny_mapping(tmp_path, **{field: value}))


def test_a_write_that_fails_leaves_the_old_file_and_names_it(tmp_path, monkeypatch):
  stored.save(tmp_path, {'a': 1})

  def full(_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', full)
  with pytest.raises(OSError) as caught:
    stored.save(tmp_path, {'a': 2})
  assert str(tmp_path / 'config.json') in files.message(caught.value)
  assert json.loads((tmp_path / 'config.json').read_text()) == {'format_version': 1, 'a': 1}
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']


def test_which_errors_are_about_files():
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG):
    assert ';' in files.message(OSError(number, 'x'))
  assert files.message(OSError('4096 requested and 0 written'))  # NumPy's of a full disk.
  assert files.message(ConnectionResetError(errno.ECONNRESET, 'x')) is None
