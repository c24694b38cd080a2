"""Presets of sampling fill in what no flag gives."""

import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.config.fields import updated
from diffusion_jax.config.presets import PRESETS, applied
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.run import load_run, new_run
from tests.conftest import tiny_mapping


@pytest.mark.parametrize('name', PRESETS)
def test_each_is_what_it_says(tmp_path, name):
  flags = {'sample.preset': name}
  config, given = applied(tiny_mapping(tmp_path, **flags), flags)
  assert given == PRESETS[name] and config['sample']['preset'] == ''
  config = create(config).config
  assert config.sampler.name == PRESETS[name]['sampler.name']
  assert config.sample.num_steps == PRESETS[name]['sample.num_steps']


def test_flags_win(tmp_path):
  flags = {'sample.preset': 'fast', 'sample.num_steps': 7}
  config, given = applied(tiny_mapping(tmp_path, **flags), flags)
  assert config['sample']['num_steps'] == given['sample.num_steps'] == 7
  assert config['sampler']['name'] == given['sampler.name'] == PRESETS['fast']['sampler.name']


def test_one_of_a_file_goes_behind_what_a_work_directory_keeps(tmp_path):
  """It changes the config, and no flag."""
  config, given = applied(tiny_mapping(tmp_path, **{'sample.preset': 'fast'}), {'sample.seed': 3})
  assert config['sampler']['name'] == PRESETS['fast']['sampler.name'] and given == {
    'sample.seed': 3
  }


@pytest.mark.slow
@pytest.mark.unoptimised
def test_a_run_keeps_the_values_and_not_the_name(tmp_path):
  """Else the preset would win over the flag that stood beside it, at every later command."""
  flags = {'sample.preset': 'fast', 'sample.num_steps': 7, 'train.num_steps': 2}
  run_mode('train', tiny_mapping(tmp_path, **flags), flags, tmp_path / 'run')
  config = load_run(tmp_path / 'run').config
  assert (config.sampler.name, config.sample.num_steps) == ('unipc', 7)
  config = load_run(tmp_path / 'run', {'sample.preset': 'balanced'}).config
  assert config.sample.num_steps == 20
  assert new_run('quickstart', {'sample.preset': 'best'}).config.sample.num_steps == 50


def test_without_one_nothing_changes(tmp_path):
  mapping = tiny_mapping(tmp_path)
  assert applied(mapping, {'sample.num_steps': 3}) == (mapping, {'sample.num_steps': 3})


def test_an_unknown_one(tmp_path):
  mapping = updated(Config, tiny_mapping(tmp_path), {'sample.preset': 'fats'})
  with pytest.raises(InputError, match=r"config\.sample\.preset: got 'fats'.*nearest 'fast'"):
    applied(mapping, {})
