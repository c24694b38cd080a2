"""The cells of a sweep: their names and costs, what they share, and what a name may not be shared by."""

import jax.numpy as jnp
import pytest

from diffusion_jax.config.sweep import Axis, Flags
from diffusion_jax.experiment.checks import create, with_settings
from diffusion_jax.sampling import samples, sweep
from tests.conftest import tiny_mapping


def cells(experiment, tmp_path, *axes):
  """The cells of fields and values, which have no problem."""
  problems = []
  made = sweep.cells_of(experiment, tmp_path, [Axis(*axis) for axis in axes], problems)
  assert not problems
  return made


def names(experiment, tmp_path, *axes):
  return [samples.set_name(cell.experiment) for cell in cells(experiment, tmp_path, *axes)]


def test_a_cell_has_the_usual_name_with_what_is_not_in_it(tiny, tmp_path):
  base = tiny()
  steps = ('sample.num_steps', (2, 5))
  assert names(base, tmp_path, ('sampler.name', ('ddim', 'ddpm')), steps) == [
    *('ddim2-cfg1', 'ddim5-cfg1', 'ddpm2-cfg1', 'ddpm5-cfg1')
  ]
  eta = ('sampler.ddim.eta', (0.0, 0.5))
  assert names(base, tmp_path, eta) == ['ddim3-cfg1', 'ddim3-cfg1-eta0.5']
  # No part of what ddpm makes, and no part of a set.
  ddpm = with_settings(base, {'sampler.name': 'ddpm'})
  assert names(ddpm, tmp_path, eta) == ['ddpm3-cfg1'] * 2
  assert names(base, tmp_path, ('eval.num_samples', (5, 10))) == ['ddim3-cfg1'] * 2
  # A set keeps how fast it was made.
  assert names(base, tmp_path, ('sample.batch_size', (16, 4))) == [
    'ddim3-cfg1',
    'ddim3-cfg1-batch_size4',
  ]
  several = [('sample.labels', ((), (3, 5))), ('sample.seed', (0, 1))]
  assert names(base, tmp_path, *several) == [
    *('ddim3-cfg1', 'ddim3-cfg1-seed1', 'ddim3-cfg1-labels3-5', 'ddim3-cfg1-labels3-5-seed1')
  ]
  named = with_settings(base, {'sample.name': 'mine'})
  assert names(named, tmp_path, ('sample.num_steps', (3, 5))) == ['mine', 'mine-num_steps5']


def test_guidance_has_its_own_place_in_a_name_and_no_program_of_its_own(tiny, tmp_path):
  base = tiny(**{'sample.cfg_scale': 2.0})
  interval = ('sample.guidance.interval', ((), (0.3, 5.0)))
  assert names(base, tmp_path, interval) == ['ddim3-cfg2', 'ddim3-cfg2-interval0.3_5']
  _ = base.process
  axes = ('sampler.name', ('ddim', 'ddpm')), ('sample.cfg_scale', (2.0, 3.0))
  made = [cell.experiment for cell in cells(base, tmp_path, *axes)]
  kinds = [experiment.generator().kind for experiment in made]
  assert kinds[0] == kinds[1] != kinds[2] == kinds[3]
  assert all(experiment.compiled is base.compiled for experiment in made)


def test_settings_of_two_cells_never_share_a_name(tiny, tmp_path):
  axis, problems = Axis('sampler.ddim.eta', (0.1, 0.1 + 1e-9)), []
  sweep.cells_of(tiny(), tmp_path, [axis], problems)
  assert len(problems) == 1 and 'ddim3-cfg1-eta0.1' in problems[0]


def test_guidance_counts_twice_and_samples_of_all_seeds_count(tiny, tmp_path):
  base = tiny(**{'eval.num_seeds': 3, 'eval.num_samples': 7})
  one, two = cells(base, tmp_path, ('sample.cfg_scale', (1.0, 2.0)))
  assert (one.evaluations, two.evaluations) == (3, 6) and two.cost == 6 * 7 * 3


def test_cells_share_what_does_not_depend_on_their_fields(tiny, tmp_path):
  base = tiny()
  parts = 'abstract_state', 'mesh', 'module', 'objective', 'process', 'sampler', 'schedule'
  for part in parts:
    getattr(base, part)
  other = with_settings(base, {'sampler.name': 'ddpm', 'sample.cfg_scale': 2.0})
  assert all(getattr(other, part) is getattr(base, part) for part in parts if part != 'sampler')
  assert type(other.sampler).__name__ == 'DDPM' and other.config.sample.cfg_scale == 2.0
  assert with_settings(base, {'sample.num_steps': 2}).sampler is base.sampler
  made = with_settings(base, {'dtype': 'bfloat16'})
  assert made.module is not base.module and made.module.dtype == jnp.bfloat16


def test_fields_are_those_that_a_trained_run_may_change(tmp_path):
  mapping, problems = tiny_mapping(tmp_path), []
  fields = (
    'sample.seed=1,2,1',
    'model.dit.attention=xla',
    'dtype=float32',
    'eval.metrics=(fid),fid',
  )
  axes = sweep.read_axes(Flags(fields), mapping, problems)
  assert [(axis.field, axis.values) for axis in axes] == [
    ('sample.seed', (1, 2)),
    ('model.dit.attention', ('xla',)),
    ('dtype', ('float32',)),
    ('eval.metrics', (('fid',),)),  # Without the one that is no tuple.
  ]
  assert len(problems) == 1 and 'eval.metrics' in problems[0] and "'fid'" in problems[0]
  for field in ('train.num_steps', 'seed', 'data.dir', 'init_from', 'schedule.name'):
    problems = []
    assert not sweep.read_axes(Flags((f'{field}=1',)), mapping, problems)
    assert len(problems) == 1 and field in problems[0]


@pytest.mark.parametrize('checkpoint', ['latest', '4'])
def test_before_training_a_cell_keeps_the_checkpoint_that_was_asked(tmp_path, checkpoint):
  experiment = create(tiny_mapping(tmp_path, **{'sample.checkpoint': checkpoint}))
  assert sweep._step(experiment, tmp_path) == checkpoint
