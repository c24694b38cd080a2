"""The schema: defaults, comments, what a trained run may change, and the page that lists them."""

from pathlib import Path

import pytest

from configs import base
from diffusion_jax.config.fields import (
  Leaf,
  change_of,
  defaults,
  plugin_names,
  read,
  schema,
  walk,
)
from diffusion_jax.config.listing import all_fields
from diffusion_jax.config.options import (
  BY_COMMAND,
  IF_GIVEN,
  NEVER,
  SETTING,
  Check,
  one_of,
)
from diffusion_jax.config.schema import Config
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.models.dit import DiT
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


def test_a_plugin_made_by_hand_has_the_defaults_and_is_checked():
  assert DiT().depth == base.get_config().model.dit.depth
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
