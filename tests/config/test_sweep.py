"""The values of --sweep as texts: split, read by the types of their fields, and shown."""

import pytest

from diffusion_jax.config import sweep
from diffusion_jax.config.fields import schema, walk
from diffusion_jax.config.schema import Config

FIELDS = dict(walk(schema(Config)))


@pytest.mark.parametrize(
  ('field', 'text', 'value'),
  [
    ('sample.num_steps', '10', 10),
    ('sample.cfg_scale', '2', 2.0),
    ('sample.cfg_scale', '1e-1', 0.1),
    ('sample.clip_x0', 'True', True),
    ('sample.clip_x0', 'false', False),
    ('sampler.name', 'ddpm', 'ddpm'),
    ('sampler.name', "'mylab.heun'", 'mylab.heun'),
    ('sample.average', '', ''),
    ('sample.checkpoint', '300', '300'),  # A text, though it looks like a number.
    ('sample.labels', '(3,two)', (3, 'two')),
    ('sample.labels', "(3, '2')", (3, '2')),
    ('sample.labels', '()', ()),
    ('sample.guidance.interval', '(0.3,5)', (0.3, 5)),
    ('eval.metrics', '(fid,kid)', ('fid', 'kid')),
    ('mesh.rules', "(('a,b', ('', 'fsdp')),)", (('a,b', ('', 'fsdp')),)),
  ],
)
def test_values_are_read_by_the_type_of_the_field(field, text, value):
  found = sweep.read_value(text, FIELDS[f'config.{field}'])
  assert found == value and repr(found) == repr(value)  # 5 is not 5.0.


@pytest.mark.parametrize(
  ('field', 'text', 'allowed'),
  [
    ('sample.num_steps', '2.5', 'int'),
    ('sample.num_steps', '', 'int'),
    ('sample.cfg_scale', 'high', 'float'),
    ('sample.clip_x0', '1', 'true, false'),
    ('sample.labels', '3', 'brackets'),
  ],
)
def test_a_value_of_another_type_is_refused(field, text, allowed):
  with pytest.raises(ValueError, match=allowed):
    sweep.read_value(text, FIELDS[f'config.{field}'])


def test_commas_in_brackets_and_quotes_do_not_separate_values():
  assert sweep.split('1,2, 3') == ['1', '2', '3']
  assert sweep.split('(0.1,0.9),(0.2,0.8)') == ['(0.1,0.9)', '(0.2,0.8)']
  assert sweep.split('((1,2),3),[4,5]') == ['((1,2),3)', '[4,5]']
  assert sweep.split("'a,b',c,") == ["'a,b'", 'c', '']
  for text in ('(1,2', "'a", '[1'):
    with pytest.raises(ValueError, match='closed'):
      sweep.split(text)


def test_values_and_fields_have_short_names():
  shown = {2.0: '2', 0.1: '0.1', 'ddim': 'ddim', '': "''", (3, 0.5): '(3, 0.5)', True: 'true'}
  assert all(sweep.shown(value) == text for value, text in shown.items())
  assert sweep.in_name('sampler.ddim.eta', 0.5) == 'eta0.5'
  assert sweep.in_name('sample.labels', (3, 5)) == 'labels3-5'
  assert sweep.name_of(['sampler.name', 'sample.num_steps']) == 'sampler-num_steps'
  assert sweep.name_of(['sampler.ddim.eta', 'sample.spacing']) == 'ddim.eta-spacing'
  intervals = ['sample.guidance.interval', 'sample.cache.interval']
  assert sweep.name_of(intervals) == 'guidance.interval-cache.interval'
  seeds = ['sample.seed', 'model.seed']
  assert sweep.name_of(seeds) == 'sample.seed-model.seed'
