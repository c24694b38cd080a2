"""--mode=sweep: every cell is measured once, whatever interrupts it; its files hold what the cells' own do."""

import csv
import json
import signal

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.config.sweep import Flags
from diffusion_jax.errors import InputError
from diffusion_jax.reporting import sweep_grid, sweep_plots
from diffusion_jax.reporting.images import enlarge
from diffusion_jax.sampling import sample_set, samples
from diffusion_jax.sampling.sweep_work import Work
from diffusion_jax.stages import sweep
from tests.conftest import tiny_mapping
from tests.support.clusters import finish, start, wait_for
from tests.support.tiny_flags import tiny_flags

PIXELS = {
  'eval.features.name': 'pixels',
  'eval.metrics': ('fid',),
  'eval.real_baseline': False,
  'eval.neighbours': 0,
}
GRID = ('sampler.name=ddim,ddpm', 'sample.num_steps=2,3')


def run(mode, trained, *fields, name='', keep_samples=True, **changes):
  flags = {**PIXELS, **changes}
  swept = Flags(fields, name, keep_samples) if mode == 'sweep' else Flags()
  run_mode(mode, tiny_mapping(trained, **flags), flags, trained / 'run', swept=swept)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A trained work directory that the tests below only add to."""
  tmp_path = tmp_path_factory.mktemp('sweep')
  rarely = dict.fromkeys(('train.holdout_every_steps', 'train.preview_every_steps'), 1000)
  run('train', tmp_path, **{'train.num_steps': 2, 'model.dit.depth': 1, **rarely})
  return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves the plots out, which take as long as the cells."""
  monkeypatch.setattr(sweep_plots, 'figures', lambda group: {})


@pytest.fixture
def sampled(monkeypatch):
  """Names the sets of which samples are made."""
  made, generate = [], samples.generate_parts

  def counted(experiment, folder, *arguments):
    made.append(folder.name)
    return generate(experiment, folder, *arguments)

  monkeypatch.setattr(samples, 'generate_parts', counted)
  return made


def rows_of(folder):
  with open(folder / 'cells.csv', newline='') as file:
    return list(csv.DictReader(file))


def results_of(trained):
  return {path.stem: json.loads(path.read_text()) for path in (trained / 'run/eval').glob('*.json')}


def place_of(image, picture):
  """Where an image lies, enlarged, in a picture."""
  wanted, pixels = enlarge(image, sweep_grid.MIN_SIDE)[..., 0], picture[..., 0]
  high, wide = wanted.shape
  rows = np.lib.stride_tricks.sliding_window_view(pixels, wide, axis=1)
  tops = np.argwhere((rows == wanted[0]).all(axis=-1))
  (place,) = [(y, x) for y, x in tops if (pixels[y : y + high, x : x + wide] == wanted).all()]
  return place


@pytest.mark.slow
def test_an_interrupted_grid_goes_on(trained, sampled, monkeypatch):
  folder = trained / 'run' / 'sweeps' / 'sampler-num_steps'
  measure, begun = Work.measure, []

  def killed(work, cell):
    begun.append(cell)
    if len(begun) == 2:
      raise KeyboardInterrupt
    return measure(work, cell)

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(Work, 'measure', killed)
    run('sweep', trained, *GRID)
  assert [row['samples'] for row in rows_of(folder)] == ['ddim2-cfg1']
  run('sweep', trained, *GRID)
  names = ['ddim2-cfg1', 'ddim3-cfg1', 'ddpm2-cfg1', 'ddpm3-cfg1']
  assert sampled == names

  rows, results = rows_of(folder), results_of(trained)
  assert [row['samples'] for row in rows] == names
  assert [(row['sampler.name'], row['sample.num_steps']) for row in rows] == [
    *[('ddim', '2'), ('ddim', '3'), ('ddpm', '2'), ('ddpm', '3')]
  ]
  for row in rows:
    result = results[row['samples']]
    found = {name: float(row[name]) for name in result['metrics']}
    assert found == result['metrics'] and float(row['images_per_s']) == result['images_per_s']
    assert float(row['seconds_per_image']) == 1 / result['images_per_s']
    assert row['evaluations'] == row['sample.num_steps'] and row['step'] == '2'
  text = (folder / 'cells.md').read_text()
  assert text.count('| ddim |') == text.count('| ddpm |') == 2

  picture = np.asarray(Image.open(folder / 'samples.png').convert('RGB'))
  stored = {
    name: sample_set.read_some(trained / 'run/samples' / name, np.arange(1)) for name in names
  }
  assert all(found['image'].shape == (1, 8, 8, 1) for found in stored.values())
  first = [sample_set.read_some(trained / 'run/samples' / name, np.arange(1)) for name in names]
  (two, three), (below_two, below_three) = np.reshape(
    [place_of(found['image'][0], picture) for found in first], (2, 2, 2)
  )  # Samplers are rows, steps are columns.
  assert two[0] == three[0] < below_two[0] == below_three[0]
  assert two[1] == below_two[1] < three[1] == below_three[1]
  for stem in ('quality-evaluations', 'quality-seconds'):
    assert Image.open(folder / f'{stem}.png').width > 500 and (folder / f'{stem}.pdf').exists()


def test_cells_are_the_sets_and_results_of_the_ordinary_commands(trained, sampled, undrawn):
  """Those that exist are not made again; the name of a set gets a field that has no place in it."""
  flags = {'sample.num_steps': 5, 'sampler.ddim.eta': 0.5}
  run('evaluate', trained, **flags, **{'sample.name': 'ddim5-cfg1-eta0.5'})
  before = results_of(trained)['ddim5-cfg1-eta0.5']
  run('sweep', trained, 'sampler.ddim.eta=0,0.5', name='noise', **{'sample.num_steps': 5})
  assert sampled == ['ddim5-cfg1-eta0.5', 'ddim5-cfg1']
  assert results_of(trained)['ddim5-cfg1-eta0.5'] == before
  run('evaluate', trained, **{'sample.num_steps': 5})
  assert sampled == ['ddim5-cfg1-eta0.5', 'ddim5-cfg1']
  rows = rows_of(trained / 'run' / 'sweeps' / 'noise')
  assert [row['sampler.ddim.eta'] for row in rows] == ['0.0', '0.5']
  # Another protocol is measured anew, on the same set.
  run('sweep', trained, 'eval.num_samples=10,20', name='sizes', **{'sample.num_steps': 5})
  rows = rows_of(trained / 'run' / 'sweeps' / 'sizes')
  assert [(row['table'], row['num_samples'], row['samples']) for row in rows] == [
    *[('1', '10', 'ddim5-cfg1'), ('2', '20', 'ddim5-cfg1')]
  ]
  assert rows[0]['frechet_distance'] != rows[1]['frechet_distance']
  assert sampled == ['ddim5-cfg1-eta0.5', 'ddim5-cfg1']
  # So are more seeds.
  run('sweep', trained, 'sample.num_steps=5', name='seeds', **{'eval.num_seeds': 2})
  (row,) = rows_of(trained / 'run' / 'sweeps' / 'seeds')
  assert row['seeds'] == '2' and sampled[2:] == ['ddim5-cfg1-seed1']


def test_samples_are_deleted_once_measured_unless_they_were_there_before(trained, sampled, undrawn):
  grid = 'sample.cfg_scale=1,3'
  run('sample', trained, **{'sample.num_steps': 6})
  kept = sample_set.stored_indices(trained / 'run/samples/ddim6-cfg1')
  changes = {'sample.num_steps': 6, 'eval.num_seeds': 2}
  run('sweep', trained, grid, name='deleted', keep_samples=False, **changes)
  names = ['ddim6-cfg1', 'ddim6-cfg1-seed1', 'ddim6-cfg3', 'ddim6-cfg3-seed1']
  assert sampled == names
  folders = {name: trained / 'run' / 'samples' / name for name in names}
  np.testing.assert_array_equal(sample_set.stored_indices(folders['ddim6-cfg1']), kept)
  for name in names[1:]:
    found = sorted(path.name for path in folders[name].iterdir())
    assert found == ['grid.png', 'meta.json', 'part-00000000.npz']
    assert len(sample_set.stored_indices(folders[name])) == 10  # One of each class.
  rows = rows_of(trained / 'run' / 'sweeps' / 'deleted')
  result = results_of(trained)['ddim6-cfg3']
  assert [row['evaluations'] for row in rows] == ['6', '12'] and rows[1]['seeds'] == '2'
  distance = 'frechet_distance'
  assert float(rows[1][distance]) == result['metrics'][distance]
  assert float(rows[1][f'{distance} over seeds']) == result['deviation'][distance]

  run('sweep', trained, grid, name='deleted', keep_samples=False, **changes)
  assert sampled == names and results_of(trained)['ddim6-cfg3'] == result
  run('sample', trained, **{'sample.num_steps': 6, 'sample.cfg_scale': 3.0})  # Whole again.
  assert len(sample_set.stored_indices(folders['ddim6-cfg3'])) == 20


def test_an_interruption_between_result_and_deletion_leaves_nothing(trained, undrawn, monkeypatch):
  folder = trained / 'run' / 'samples' / 'ddim7-cfg1'
  arguments = (trained, 'sample.num_steps=7')

  def killed(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(sample_set, 'keep_only', killed)
    run('sweep', *arguments, keep_samples=False)
  assert len(sample_set.stored_indices(folder)) == 20
  run('sweep', *arguments, keep_samples=False)
  assert len(sample_set.stored_indices(folder)) == 10


BAD = {
  'unknown': (
    ['sampler.nam=ddim'],
    ["--sweep=sampler.nam: no such field (nearest 'sampler.name'"],
  ),
  'trained': (['model.dit.depth=1,2'], ['--sweep=model.dit.depth: a trained run cannot change it']),
  'section': (['sampler=ddim'], ['--sweep=sampler: a section', 'sampler.name']),
  'no values': (['sample.seed'], ['--sweep=sample.seed', 'V1,V2']),
  'twice': (['sample.seed=1', 'sample.seed=2'], ['--sweep=sample.seed: given twice']),
  'given': (['eval.metrics=(fid)'], ['--sweep=eval.metrics: --config.eval.metrics']),
  'named': (['sample.name=a,b'], ['--sweep=sample.name', '--sweep_name']),
  'idle': (['report.num_classes=1,2'], ['--sweep=report.num_classes: samples do not depend']),
  'nothing': ([], ['--sweep is missing']),
  'open': (['sample.labels=(1,2'], ['--sweep=sample.labels', '(1,2', 'closed']),
  'all at once': (
    ['sampler.name=ddim,dpm', 'sample.num_steps=2,0,many', 'sample.cfg_scale=1,-2'],
    [
      "--sweep=sample.num_steps: got 'many', allowed a value of type int",
      'cell sampler.name=ddim, sample.num_steps=2, sample.cfg_scale=-2 and 3 more: config.sample.cfg_scale',
      'cell sampler.name=ddim, sample.num_steps=0, sample.cfg_scale=1 and 3 more: config.sample.num_steps',
      'cell sampler.name=dpm, sample.num_steps=2, sample.cfg_scale=1 and 3 more: config.sampler.name: got',
    ],
  ),
  'evaluation': (
    ['eval.metrics=(fid),(kid)', 'eval.kid.subset_size=10,1000'],
    ['cell eval.metrics=(kid), eval.kid.subset_size=1000: config.eval.kid.subset_size'],
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_every_problem_is_listed_before_anything_is_sampled(trained, name, monkeypatch):
  fields, parts = BAD[name]
  monkeypatch.setattr(samples, 'complete', None)
  own = {key: PIXELS[key] for key in PIXELS if key != 'eval.metrics' or name != 'evaluation'}
  mapping = tiny_mapping(trained, **own)
  with pytest.raises(InputError) as error:
    run_mode('sweep', mapping, own, trained / 'run', swept=Flags(tuple(fields)))
  for part in parts:
    assert part in str(error.value)


def test_the_flags_are_those_of_sweeps_alone(trained):
  for swept in (Flags(GRID), Flags(name='a'), Flags(keep_samples=False)):
    with pytest.raises(InputError, match='only with --mode=sweep'):
      run_mode('sample', tiny_mapping(trained), {}, trained / 'run', swept=swept)
  with pytest.raises(InputError, match='--sweep_name'):
    run('sweep', trained, *GRID, name='../a')


def test_the_time_that_is_left_has_a_part_for_each_cell_and_one_for_its_cost():
  made = [(cost, 3.0 + 0.5 * cost) for cost in (10, 50, 20)]
  assert sweep.remaining_seconds(made, [100, 5]) == pytest.approx(2 * 3.0 + 0.5 * 105)
  assert sweep.remaining_seconds([(10, 4.0)], [10, 10]) == pytest.approx(8)
  assert sweep.remaining_seconds([], [10]) is None


@pytest.mark.slow
@pytest.mark.unoptimised
def test_sigterm_exits_with_75_and_the_same_command_goes_on(tmp_path):
  """With the flags of the command line, on real processes."""
  common = tiny_flags(tmp_path / 'data', tmp_path / 'run')
  assert finish(start(*common, num_processes=1, devices=1))[0] == [0]
  command = [f'--workdir={tmp_path}/run', '--mode=sweep', *(f'--sweep={field}' for field in GRID)]
  command += ["--config.eval.metrics=('fid',)", '--keep_samples=false', '--sweep_name=study']
  command += [f'--config.data.dir={tmp_path}/data']
  running = start(*command, num_processes=1, devices=1)
  wait_for((tmp_path / 'run' / 'eval' / 'ddim2-cfg1.json').exists, running)
  running[0].send_signal(signal.SIGTERM)
  codes, _, errors = finish(running)
  assert codes == [75] and 'SIGTERM' in errors[0], errors
  codes, outputs, errors = finish(start(*command, num_processes=1, devices=1))
  assert codes == [0], errors
  assert 'ddim2-cfg1: ' not in outputs[0] and 'cell 2 of 4' in errors[0]
  rows = rows_of(tmp_path / 'run' / 'sweeps' / 'study')
  assert len(rows) == 4
  for row in rows:
    folder = tmp_path / 'run' / 'samples' / row['samples']
    assert {path.name for path in folder.iterdir()} == {
      *('grid.png', 'meta.json', 'part-00000000.npz')
    }
