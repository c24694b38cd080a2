"""The schema: defaults, comments, what a trained run may change, and the page that lists them."""

import ast
from pathlib import Path

import jax.numpy as jnp
import pytest

from configs import base
from diffusion_jax.config.fields import Leaf, change_of, defaults, read, schema, walk
from diffusion_jax.config.listing import all_fields
from diffusion_jax.config.options import (
  BY_COMMAND,
  IF_GIVEN,
  IN_TRAINING,
  NEVER,
  SETTING,
  Check,
  one_of,
  options_of,
)
from diffusion_jax.config.plugins import plugin_names
from diffusion_jax.config.schema import Config
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.vae import AutoencoderKL
from diffusion_jax.usage import leaves


def test_defaults_are_allowed_and_what_is_built_without_a_config():
  problems = []
  config = read(Config, defaults(schema(Config)), 'config', problems)
  assert not problems and config.optimizer == Config().optimizer and config.eval.backend == 'jax'
  assert config.model.options == Config().model.options


def test_every_field_is_described_once_with_a_comment():
  found = list(walk(schema(Config)))
  paths = [path.removeprefix('config.') for path, item in found if isinstance(item, Leaf)]
  assert sorted(paths) == sorted(leaves(base.get_config().to_dict()))
  assert not [path for path, item in found if not item.comment]


def test_the_page_says_of_each_field_what_a_trained_run_may_change():
  fields = [(path, item) for path, item in walk(schema(Config)) if isinstance(item, Leaf)]
  assert not [
    path
    for path, leaf in fields
    if leaf.change != change_of(schema(Config), path.removeprefix('config.'))
  ]


def test_the_page_of_all_fields_is_what_is_printed():
  page = Path(__file__).parents[2] / 'docs' / 'config.md'
  assert page.read_text() == all_fields(), (
    'python main.py --mode=describe --fields > docs/config.md'
  )


@pytest.mark.parametrize(
  'path, change',
  [
    ('seed', NEVER),
    ('model.dit.depth', NEVER),
    ('model.dit.remat', IF_GIVEN),
    ('model.unet.dropout', IN_TRAINING),
    ('model.unet.channels', NEVER),
    ('model.name', NEVER),
    ('schedule.cosine.num_timesteps', NEVER),
    ('data.flip', NEVER),
    ('data.workers', IF_GIVEN),
    ('optimizer.learning_rate', ''),
    ('train.batch_size', NEVER),
    ('train.num_steps', ''),
    ('sampler.ddim.eta', SETTING),
    ('eval.kid.subsets', SETTING),
    ('bench.data.batches', BY_COMMAND),
    ('vae.batch_size', BY_COMMAND),
    ('vae.channels', NEVER),
  ],
)
def test_what_a_trained_run_may_change_is_said_at_the_field_or_its_section(path, change):
  assert change_of(schema(Config), path) == change


def test_checks():
  assert one_of('a', 'b').problem('x', 'a') == ''
  assert one_of('cosine', 'linear').problem('x', 'cosin') == (
    "x: got 'cosin', allowed cosine, linear (nearest 'cosine')"
  )
  assert Check(lambda n: n > 1, '> 1').problem('x', 1) == 'x: got 1, allowed > 1'


@pytest.mark.parametrize(
  'cls, path', [(DiT, 'model.dit'), (UNet, 'model.unet'), (AutoencoderKL, 'vae')]
)
def test_a_network_made_by_hand_has_the_defaults_of_the_config(cls, path):
  section, config = base.get_config(), cls()
  for key in path.split('.'):
    section = section[key]
  assert len(options_of(cls)) >= 5
  assert all(getattr(config, name) == section[name] for name in options_of(cls))
  assert config.dtype == jnp.float32


def test_a_discriminator_made_by_hand_has_the_defaults_of_the_config():
  module, options = PatchDiscriminator(), base.get_config().objective.autoencoder
  assert module.channels == options.discriminator_channels == 64
  assert module.num_layers == options.discriminator_layers == 3


def test_sizes_of_the_autoencoder_are_fields_of_its_section():
  mapping, problems = defaults(schema(Config)), []
  mapping['vae'] |= {'channels': 64, 'channel_mult': [1, 2]}
  config = read(Config, mapping, 'config', problems)
  assert not problems and config.vae.sizes == {
    'channels': 64,
    'channel_mult': (1, 2),
    'num_res_blocks': 2,
    'z_channels': 3,
    'embed_channels': 3,
  }
  mapping['vae'] |= {'channel_mult': (1, 0), 'z_channels': 'three', 'sizes': {}}
  assert read(Config, mapping, 'config', problems) is None
  assert [problem.split(':')[0] for problem in problems] == [
    'config.vae',
    'config.vae.channel_mult',
    'config.vae.z_channels',
  ]


def test_fields_of_a_network_are_listed_in_its_own_file():
  """And in pretrained/, where foreign ones are turned into them."""
  package, wrong = Path(__file__).parents[2] / 'diffusion_jax', []
  files = [p for p in package.rglob('*.py') if p.parent.name not in ('models', 'pretrained')]
  for path in files:
    for node in ast.walk(ast.parse(path.read_text())):
      found = getattr(node, 'elts', None) or getattr(node, 'keys', None) or ()
      names = {constant.value for constant in found if isinstance(constant, ast.Constant)}
      for cls in (DiT, UNet, AutoencoderKL):
        if len(names & set(options_of(cls))) >= 3:
          wrong.append(f'{path.name}:{node.lineno} lists fields of {cls.__name__}')
  assert files and not wrong


def test_a_plugin_made_by_hand_is_checked():
  for make, message in (
    (lambda: DiT(depth=0), 'depth: got 0'),
    (lambda: DDIM(None, 2.0), 'eta: got'),
  ):
    with pytest.raises(ValueError, match=message):
      make()


def test_a_plugin_is_a_file_with_a_class_of_its_name():
  assert plugin_names('models') == ['dit', 'unet']  # Other networks are no backbones.
  assert plugin_names('evaluation') == sorted(
    ('fid', 'inception_score', 'kid', 'label_accuracy', 'precision_recall')
  )
