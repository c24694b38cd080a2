"""Configs are read completely or refused with every problem named; every file of configs/ builds."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from diffusion_jax.diffusion.spacings.karras import Karras
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.checks import check_devices, create
from diffusion_jax.parsing import parse
from diffusion_jax.runtime.cost import num_parameters
from tests.conftest import tiny_mapping

CONFIGS = [
  path
  for path in sorted(Path(__file__).parents[2].glob('configs/[a-z]*.py'))
  if path.stem not in ('folder', 'report')  # One needs images: test_from_data.py; one is no run.
]


def flags_of(*arguments):
  """The flags of main.py, parsed as the command line would be."""
  from absl import flags
  from ml_collections import config_flags

  values, argv = flags.FlagValues(), ['main.py', *arguments]
  config_flags.DEFINE_config_file('config', None, '', flag_values=values, sys_argv=argv)
  return parse(argv, values)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds_at_full_size(path):
  mapping, overrides = flags_of(f'--config={path}')
  experiment = create(mapping)
  check_devices(experiment)
  assert overrides == {} and num_parameters(experiment.abstract_state.params['model']) > 0
  objective, parts = experiment.objective, experiment.abstract_state.params
  out = jax.eval_shape(objective.forward, parts, *objective.forward_inputs(4))
  out = out if objective.network else out[0]
  *sides, channels = experiment.x0_shape
  outputs = 2 if experiment.config.process.learned_variance else 1
  assert out.shape == (4, *sides, outputs * channels)


def test_overrides_are_reported():
  mapping, overrides = flags_of(
    '--config=configs/quickstart.py', '--config.model.dit.depth=8', '--config.sample.labels=(3, 1)'
  )
  assert overrides == {'model.dit.depth': 8, 'sample.labels': (3, 1)}
  assert mapping['model']['dit']['depth'] == 8
  assert create(mapping).config.sample.labels == (3, 1)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'train.batch_size': 0}, r'config.train.batch_size: got 0, allowed >= 1'),
    ({'train.ema_decay': 1.0}, r'config.train.ema_decay: got 1.0, allowed 0 <= x < 1'),
    ({'sampler.ddim.eta': 2.0}, r'config.sampler.ddim.eta: got 2.0, allowed 0..1'),
    ({'schedule.cosine.max_beta': 1.5}, r'config.schedule.cosine.max_beta: got 1.5'),
    ({'sample.spacing': 'middle'}, r"config.sample.spacing: got 'middle'"),
    ({'optimizer.warmup_steps': 9}, r'config.optimizer.warmup_steps: got 9'),
    (
      {'eval.metrics': ('fdi',)},
      r"got 'fdi', allowed fid, inception_score, kid, label_accuracy, precision_recall",
    ),
    ({'sample.checkpoint': 'newest'}, r"config.sample.checkpoint: got 'newest'"),
    ({'mesh.rules': (('mlp', ('model',)),)}, r"config.mesh.rules: got \('mlp', \('model',\)\)"),
    ({'mesh.rules': (('mlp', 'fsdp'),)}, r'config.mesh.rules: got'),
    ({'mesh.rules': (('(', ('fsdp',)),)}, r'config.mesh.rules: got'),
    ({'checkpoint.best_metric': 'fid'}, r"config.checkpoint.best_metric: got 'fid'"),
    ({'sample.name': 'a/b'}, r"config.sample.name: got 'a/b'"),
  ],
)
def test_values_that_are_not_allowed(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    create(tiny_mapping(tmp_path, **changes))


def test_unknown_and_mistyped_keys_are_all_named_at_once(tmp_path):
  mapping = tiny_mapping(tmp_path)
  mapping['model']['dit']['dept'] = 3
  mapping['published'] = 'l2'
  mapping['optimizer']['b1'] = 'high'
  mapping['extra'] = 1
  with pytest.raises(InputError) as caught:
    create(mapping)
  text = str(caught.value)
  assert '4 problems' in text
  for part in (
    "unknown field: got 'dept'",
    "config.published: got 'l2'",
    "b1: got 'high'",
    "'extra'",
  ):
    assert part in text


def test_a_missing_field_takes_its_default(tmp_path):
  mapping = tiny_mapping(tmp_path)
  del (
    mapping['objective']['denoising']['class_dropout'],
    mapping['model']['dit']['mlp_ratio'],
    mapping['report'],
  )
  del mapping['sampler']['name'], mapping['eval']['metrics'], mapping['schedule']
  experiment = create(mapping)
  assert experiment.config == create(tiny_mapping(tmp_path)).config
  assert experiment.mapping == create(tiny_mapping(tmp_path)).mapping  # As config.json keeps it.


def test_what_a_work_directory_lacks_counts_as_the_default(tmp_path):
  older = tiny_mapping(tmp_path)
  del (
    older['process']['learned_variance'],
    older['objective']['denoising']['weighting'],
    older['sample']['cfg_scale'],
  )
  stored.save(tmp_path, older)
  assert stored.changes(tmp_path, tiny_mapping(tmp_path)) == []
  given = tiny_mapping(
    tmp_path, **{'objective.denoising.weighting': 'min_snr', 'sample.cfg_scale': 2.0}
  )
  assert stored.changes(tmp_path, given) == ["objective.denoising.weighting: 'none' -> 'min_snr'"]
  for taken in (stored.merged(tmp_path, given, {}), stored.with_settings(tmp_path, given, {})):
    assert taken['sample']['cfg_scale'] == 1.0
  given = tiny_mapping(tmp_path, **{'process.learned_variance': True})
  with pytest.raises(InputError, match=r'learned_variance: trained with False, got True'):
    stored.changes(tmp_path, given)


def test_unused_alternatives_are_not_looked_at(tmp_path):
  create(tiny_mapping(tmp_path, **{'model.unet.channels': 5}))
  with pytest.raises(InputError, match='channels: got 5'):
    create(tiny_mapping(tmp_path, **{'model.unet.channels': 5, 'model.name': 'unet'}))


def test_a_config_survives_json(tmp_path):
  mapping = tiny_mapping(tmp_path, **{'mesh.rules': (('mlp', ('', 'fsdp')),)})
  stored.save(tmp_path, mapping)
  assert create(stored.load(tmp_path)).config == create(mapping).config


def test_what_voids_a_checkpoint_is_refused_and_the_rest_is_noted(tmp_path):
  stored.save(tmp_path, tiny_mapping(tmp_path))
  for change in (
    {'model.dit.depth': 3},
    {'model.name': 'unet'},
    {'seed': 1},
    {'train.batch_size': 8},
    {'data.flip': True},
    {'process.prediction_type': 'x0'},
    {'schedule.cosine.num_timesteps': 500},
  ):
    with pytest.raises(InputError, match=f'{next(iter(change))}: trained with'):
      stored.changes(tmp_path, tiny_mapping(tmp_path, **change))
  same = {
    'model.unet.channels': 96,
    'sample.num_steps': 2,
    'data.dir': 'elsewhere',
    'data.verify': 'quick',
  }
  assert stored.changes(tmp_path, tiny_mapping(tmp_path, **same)) == []
  noted = stored.changes(tmp_path, tiny_mapping(tmp_path, **{'optimizer.learning_rate': 0.5}))
  assert noted == ['optimizer.learning_rate: 0.002 -> 0.5']
  noted = stored.changes(tmp_path, tiny_mapping(tmp_path, dtype='bfloat16'))
  assert noted == ["dtype: 'auto' -> 'bfloat16'"]


def test_after_training_the_model_comes_from_the_workdir_and_samples_from_the_command(tmp_path):
  trained = tiny_mapping(tmp_path, **{'model.name': 'unet', 'sample.num_steps': 3})
  stored.save(tmp_path, trained)
  given = tiny_mapping(tmp_path, **{'sample.num_steps': 2})
  merged = stored.merged(tmp_path, given, {'sample.num_steps': 2})
  assert merged['model']['name'] == 'unet' and merged['sample']['num_steps'] == 2
  with pytest.raises(InputError, match=r"model\.name: got 'dit', .* trained with 'unet'"):
    stored.merged(tmp_path, given, {'model.name': 'dit'})


def test_a_work_directory_that_is_older_than_a_field_is_read(tmp_path):
  given = tiny_mapping(tmp_path)
  older = {key: value for key, value in given.items() if key not in ('published', 'report')}
  older['train'] = {k: v for k, v in given['train'].items() if not k.startswith('eval')}
  stored.save(tmp_path, older)
  assert create(stored.merged(tmp_path, given, {})).config == create(given).config
  assert stored.changes(tmp_path, given) == []


def test_a_given_scale_of_latents_is_taken_and_measures_nothing(tmp_path):
  given = tiny_mapping(tmp_path, **{'space': 'latent', 'vae.scale': 0.18215})
  scaling = create(given).scaling
  assert scaling.scale == np.float32(0.18215) and not scaling.shift.any()


def test_options_of_a_spacing_decide_the_times(tmp_path):
  changes = {'schedule.name': 'variance_exploding', 'sample.spacing': 'karras'}
  made = [
    create(tiny_mapping(tmp_path, **changes, **{'sample.karras.rho': rho})) for rho in (7.0, 2.0)
  ]
  for experiment, rho in zip(made, (7.0, 2.0)):
    np.testing.assert_array_equal(experiment.times(3), Karras(rho)(experiment.schedule, 3))
  assert (made[0].times(3) != made[1].times(3)).any()
  with pytest.raises(InputError, match=r"config\.sample\.spacing: got 'karras'"):
    create(tiny_mapping(tmp_path, **{**changes, 'schedule.name': 'rectified_flow'}))


def test_another_format_of_config_json_is_refused(tmp_path):
  given = tiny_mapping(tmp_path)
  stored.save(tmp_path, given)
  whole = json.loads((tmp_path / 'config.json').read_text())
  for version in (None, 2):
    other = {key: value for key, value in whole.items() if key != 'format_version'}
    other |= {'format_version': version} if version else {}
    (tmp_path / 'config.json').write_text(json.dumps(other))
    with pytest.raises(InputError, match=rf'format_version {(version or "none")}, allowed 1'):
      stored.merged(tmp_path, given, {})
