"""Plug-ins outside the package, named by a dotted name: by flags, in a config file and in config.json."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.fields import Leaf, change_of, read, recognised, schema, walk, with_values
from diffusion_jax.config.options import IF_GIVEN, SETTING
from diffusion_jax.config.plugins import Choice, make_plugin
from diffusion_jax.config.schema import Config
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import given_sizes, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.resolve import remembered, trained
from diffusion_jax.types import Prediction
from tests.conftest import tiny_mapping
from tests.support.samplers import run_sampler
from tests.test_parsing import begun, parsed

ROOT = Path(__file__).parents[1]
QUICK = f'--config={ROOT}/configs/quickstart.py'
SAMPLER = '''"""DDIM's deterministic step, written outside the package."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffusion_jax.config.options import COUNT, option, require_options


@dataclasses.dataclass(frozen=True)
class Heun3:
  """Of the third order."""

  schedule: Any
  order: int = option(3, 'Evaluations a step.', COUNT)
  names: tuple[str, ...] = option((), 'Of nothing.')

  def __post_init__(self):
    require_options(self)

  def init(self, x_T, times):
    return ()

  def evaluations(self, num_steps):
    return num_steps

  def step(self, keys, x_t, t, s, denoise, carry):
    level, prediction = self.schedule(s), denoise(x_t, t)
    return level.alpha * prediction.x0 + level.sigma * prediction.eps, carry
'''
OWN = '''import dataclasses

from diffusion_jax.config.options import IF_GIVEN, option


@dataclasses.dataclass(frozen=True)
class Own:
  """A plug-in of any kind."""

  size: float = option(2.0, 'Of something.')
  remat: bool = option(False, 'Anything.', change=IF_GIVEN)
'''
CHOICES = {
  path: leaf for path, leaf in walk(schema(Config)) if isinstance(leaf, Leaf) and leaf.package
}
HEUN = ('--config.sampler.name=mylab.heun3', '--config.sampler.heun3.order=2')


@pytest.fixture
def lab(tmp_path, monkeypatch):
  """The current directory, with a package mylab in it that nothing has put on the Python path."""
  (tmp_path / 'mylab').mkdir()
  write(tmp_path, 'heun3', SAMPLER)
  write(tmp_path, 'own', OWN)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  yield tmp_path
  for name in [name for name in sys.modules if name.split('.')[0] == 'mylab']:
    del sys.modules[name]


def write(folder, name, source):
  (folder / 'mylab' / f'{name}.py').write_text(source)


def test_flags_name_a_sampler_of_the_current_directory_which_then_samples(lab):
  config, overrides = parsed(QUICK, *HEUN)
  assert overrides == {'sampler.name': 'mylab.heun3', 'sampler.heun3.order': 2}
  experiment = create(config)
  assert type(experiment.sampler).__module__ == 'mylab.heun3' and experiment.sampler.order == 2

  def denoise(x_t, t):
    return Prediction(x_t * (1 - t), x_t * t)

  times, keys = experiment.times(5), jax.random.split(jax.random.key(0), 2)
  x_T = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
  images = [
    run_sampler(sampler, denoise, x_T, keys, times)[0]
    for sampler in (experiment.sampler, DDIM(experiment.schedule))
  ]
  np.testing.assert_array_equal(*images)
  assert jnp.isfinite(images[0]).all()


def test_a_config_file_names_it_with_some_of_its_options(lab):
  path = lab / 'mine.py'
  path.write_text(
    'from configs import quickstart\n\n\ndef get_config():\n  config = quickstart.get_config()\n'
    "  config.sampler.name = 'mylab.heun3'\n  config.sampler.heun3 = {'order': 4}\n  return config\n"
  )
  config, _ = parsed(f'--config={path}', '--config.sampler.heun3.names=a')
  assert create(config).config.sampler.options == {'order': 4, 'names': ('a',)}
  with pytest.raises(InputError, match=r"heun3\.ordr: .*nearest 'sampler\.heun3\.order'"):
    parsed(f'--config={path}', '--config.sampler.heun3.ordr=1')
  config, _ = parsed(f'--config={path}', '--config.sampler.name=ddim')  # Its section goes too.
  assert create(config).config.sampler.options == {'eta': 0.0}
  path.write_text(path.read_text().replace("'order'", "'ordr'"))
  with pytest.raises(InputError, match=r"config\.sampler\.heun3: unknown field: got 'ordr'"):
    create(parsed(f'--config={path}')[0])


@pytest.mark.parametrize(
  'flags, problem',
  [
    (['--config.sampler.heun3.order=0'], r'config\.sampler\.heun3\.order: got 0, allowed >= 1'),
    (['--config.sampler.heun3.order=two'], r'order'),
    (['--config.sampler.heun3.names=(1,)'], r'config\.sampler\.heun3\.names: got \(1,\)'),
  ],
)
def test_its_options_are_checked(lab, flags, problem):
  with pytest.raises(InputError, match=problem):
    create(parsed(QUICK, HEUN[0], *flags)[0])


def test_config_json_keeps_it_for_resuming_and_sampling(lab):
  config, _ = parsed(QUICK, *HEUN)
  folder = begun(lab / 'run', create(config).mapping)
  again, _ = parsed(f'--workdir={folder}')
  assert create(again).config == create(config).config
  assert stored.read(folder / 'config.json')[1] == [] and stored.changes(folder, config) == []
  plain = parsed(QUICK)[0]
  for taken in (remembered(folder, plain, {}), trained('sample', folder, plain, {})[0]):
    assert create(taken).config.sampler == create(config).config.sampler
  config, overrides = parsed(f'--workdir={folder}', '--config.sampler.heun3.order=5')
  sampling = create(*trained('sample', folder, config, overrides))
  assert sampling.config.sampler.options == {'order': 5, 'names': ()}


@pytest.mark.parametrize('base', [QUICK, '--workdir=run'])
def test_a_trained_run_takes_another_sampler_from_or_to_outside(lab, base):
  for before, after in ((HEUN, ('--config.sampler.name=ddim',)), ((), HEUN)):
    begun(lab / 'run', create(parsed(QUICK, *before)[0]).mapping)
    config, overrides = parsed(base, *after)
    for taken in (
      remembered(lab / 'run', config, overrides),
      trained('sample', lab / 'run', config, overrides)[0],
    ):
      expected = create(parsed(QUICK, *after)[0]).config.sampler
      assert create(taken).config.sampler == expected
    (lab / 'run' / 'checkpoints' / '4').rmdir()
    (lab / 'run' / 'checkpoints').rmdir()


@pytest.mark.parametrize('path', CHOICES)
def test_every_choice_takes_one(lab, monkeypatch, path):
  monkeypatch.syspath_prepend(lab)
  several, path = isinstance(CHOICES[path].default, tuple), path.removeprefix('config.')
  names = (*CHOICES[f'config.{path}'].default, 'mylab.own') if several else 'mylab.own'
  mapping = with_values(tiny_mapping(lab), {path: names})
  section = f'{path.rpartition(".")[0]}.own'
  mapping = with_values(mapping, {f'{section}.size': 5})
  problems = []
  config = read(Config, mapping, 'config', problems)
  assert not problems
  found = config
  for key in path.split('.')[:-1]:
    found = getattr(found, key)
  if not isinstance(found, Choice):  # The name stands beside the section's other fields.
    held = [value for value in vars(found).values() if isinstance(value, (Choice, tuple))]
    (found,) = [
      c for value in held for c in np.ravel(value) if getattr(c, 'name', '') == 'mylab.own'
    ]
  assert (found.name, found.options) == ('mylab.own', {'size': 5.0, 'remat': False})
  assert found.section == f'config.{section}'
  assert type(make_plugin(found.package, found.name, **found.options)).__name__ == 'Own'
  assert change_of(schema(Config, mapping), f'{section}.remat') == IF_GIVEN
  assert change_of(schema(Config, mapping), f'{section}.size') == change_of(schema(Config), path)
  lost = []
  assert recognised(schema(Config, mapping), mapping, lost) == mapping and lost == []


def test_sizes_of_a_model_outside_come_with_its_weights(lab, monkeypatch):
  monkeypatch.syspath_prepend(lab)
  changes = {'model.name': 'mylab.own', 'model.own.size': 5.0}
  there = begun(lab / 'there', with_values(tiny_mapping(lab), changes))
  adopted, changed = given_sizes.adopt(tiny_mapping(lab, init_from=str(there)), {})
  assert adopted['model']['name'] == 'mylab.own' and adopted['model']['own'] == {'size': 5.0}
  assert 'config.model.own.size: None -> 5.0' in changed


def test_several_metrics_by_flags(lab):
  write(lab, 'other', OWN.replace('Own', 'Other'))
  flags = ('--config.eval.metrics=mylab.own', '--config.eval.metrics=fid')
  for given in (flags, ("--config.eval.metrics=('mylab.own', 'mylab.other')",)):
    config, _ = parsed(QUICK, *given, '--config.eval.own.size=7')
    metrics = read(Config, config, 'config', []).eval.metrics
    assert metrics[0].name == 'mylab.own' and metrics[0].options['size'] == 7.0
    assert change_of(schema(Config, config), 'eval.own.size') == SETTING
    assert len(metrics) == 2


@pytest.mark.parametrize(
  'flag, source, parts',
  [
    ('sampler.name=mylab.gone', '', ("'mylab.gone'", 'no module mylab.gone')),
    ('sampler.name=nolab.heun3', '', ("'nolab.heun3'", 'no module nolab')),
    ('sampler.name=mylab.bad', 'import gone_entirely', ('mylab.bad', 'gone_entirely', 'bad.py:1')),
    ('sampler.name=mylab.bad', '\n1 / 0', ('mylab.bad', 'ZeroDivisionError', 'bad.py:2')),
    ('sampler.name=mylab.bad', 'class (', ('mylab.bad', 'SyntaxError', 'bad.py, line 1')),
    ('sampler.name=mylab.bad', 'class Good:\n  pass', ('bad.py', 'no dataclass Bad')),
    ('sampler.name=mylab.bad', 'class Bad:\n  pass', ('bad.py', 'no dataclass Bad')),
    ('sampler.name=mylab.ddim', OWN.replace('Own', 'DDIM'), ("'mylab.ddim'", "'ddim'", 'rename')),
    ('bench.name=mylab.repeats', OWN, ("'mylab.repeats'", 'rename')),
    ('eval.metrics=mylab.features', OWN, ("'mylab.features'", 'rename')),
    ('model.name=mylab-dit', '', ("'mylab-dit'", 'dit, unet', 'dotted name')),
    ('model.name=.dit', '', ("'.dit'", 'dit, unet')),
  ],
)
def test_what_cannot_be_loaded_is_named_with_what_is_expected(lab, flag, source, parts):
  name = flag.rpartition('.')[2]
  if source:
    write(lab, name, source)
  with pytest.raises(InputError) as caught:
    create(parsed(QUICK, f'--config.{flag}')[0])
  for part in (f'config.{flag.split("=")[0]}: got', *parts):
    assert part in str(caught.value)


def test_two_of_the_same_last_name_are_refused(lab):
  (lab / 'mylab' / 'more').mkdir()
  (lab / 'mylab' / 'more' / 'own.py').write_text(OWN)
  with pytest.raises(InputError, match=r"eval\.metrics: got 'mylab\.more\.own', .*'own'"):
    parsed(QUICK, '--config.eval.metrics=mylab.own', '--config.eval.metrics=mylab.more.own')


def test_a_config_json_whose_plugin_is_gone_is_named(lab):
  folder = begun(lab / 'run', create(parsed(QUICK, *HEUN)[0]).mapping)
  (lab / 'mylab' / 'heun3.py').unlink()
  del sys.modules['mylab.heun3']
  with pytest.raises(InputError, match=r"config\.json: config\.sampler\.name: got 'mylab\.heun3'"):
    parsed(f'--workdir={folder}')


def test_main_finds_it_from_the_current_directory_and_lists_its_options(lab):
  result = subprocess.run(
    [sys.executable, ROOT / 'main.py', QUICK, '--mode=describe', '--fields', *HEUN],
    cwd=lab,
    env={**os.environ, 'PYTHONPATH': '', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  row = '| `sampler.heun3.order` | `3` | Evaluations a step. Allowed: >= 1. | setting |'
  assert row in result.stdout.splitlines()
