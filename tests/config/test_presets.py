"""Presets of sampling fill in what no flag gives."""

import pytest

from diffusion_jax.config.fields import updated
from diffusion_jax.config.presets import PRESETS, applied
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from tests.conftest import tiny_mapping


@pytest.mark.parametrize('name', PRESETS)
def test_each_is_what_it_says(tmp_path, name):
  flags = {'sample.preset': name}
  config, given = applied(tiny_mapping(tmp_path, **flags), flags)
  assert given == {**PRESETS[name], **flags}
  config = create(config).config
  assert config.sampler.name == PRESETS[name]['sampler.name']
  assert config.sample.num_steps == PRESETS[name]['sample.num_steps']


def test_flags_win(tmp_path):
  flags = {'sample.preset': 'fast', 'sample.num_steps': 7}
  config, given = applied(tiny_mapping(tmp_path, **flags), flags)
  assert config['sample']['num_steps'] == given['sample.num_steps'] == 7
  assert config['sampler']['name'] == given['sampler.name'] == PRESETS['fast']['sampler.name']


def test_without_one_nothing_changes(tmp_path):
  mapping = tiny_mapping(tmp_path)
  assert applied(mapping, {'sample.num_steps': 3}) == (mapping, {'sample.num_steps': 3})


def test_an_unknown_one(tmp_path):
  mapping = updated(Config, tiny_mapping(tmp_path), {'sample.preset': 'fats'})
  with pytest.raises(InputError, match=r"config\.sample\.preset: got 'fats'.*nearest 'fast'"):
    applied(mapping, {})
