"""Everything from preparation to the report with the packages of requirements-core.txt alone.

The packages beyond it are installed for the tests, so an import hook hides them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.missing import make_lean, missing_modules

ROOT = Path(__file__).parents[1]
FLAGS = {
  'data.workers': 1,
  'model.dit.hidden_size': 32,
  'model.dit.depth': 2,
  'model.dit.num_heads': 2,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 4,
  'train.batch_size': 16,
  'train.log_every_steps': 1,
  'sample.num_samples': 20,
  'sample.num_steps': 3,
  'sample.gif_frames': 3,
  'eval.neighbours': 2,
  'eval.features.dataset_classifier.num_steps': 5,
  'eval.features.dataset_classifier.channels': (8, 8),
}
# What needs a package more, and how its message begins and names it.
LACKING = {
  'tf.data': (
    ['--config.data.loader=tf'],
    "config.data.loader: 'tf' needs the package tensorflow,",
  ),
  'TFDS': (
    ['--config.data.source=cifar10', '--config.data.name=cifar10', '--mode=prepare'],
    "config.data.source: 'cifar10'",
    'the package tensorflow-datasets,',
  ),
  'a pickle': (
    ['--config.init_from={folder}/dit.pt', '--config.allow_pickle=True'],
    '{folder}/dit.pt: a PyTorch pickle needs the package torch,',
  ),
  "the FID network's weights": (
    ['--config.eval.features.name=inception', '--config.train.eval_every_steps=2'],
    'config.eval.features.name: inception needs weights',
    'the package torch,',
  ),
  'torch-fidelity': (
    ['--config.bench.name=evaluation', '--mode=bench', '--config.eval.features.name=inception'],
    "config.eval.backend: 'torch_fidelity' needs the package torch-fidelity,",
  ),
}


def run_all(folder, cases, environment):
  """Runs the commands of digits in the folder, then others. Returns: name -> result of forked_main."""
  common = [
    '--config=configs/quickstart.py',
    f'--config.data.dir={folder}/data',
    *(f'--config.{name}={value}' for name, value in FLAGS.items()),
  ]
  modes = ('prepare', 'train', 'sample', 'evaluate')
  run = {mode: [*common, f'--workdir={folder}/run', f'--mode={mode}'] for mode in modes}
  run['report'] = [f'--workdir={folder}', '--mode=report']
  others = {name: [*common, f'--workdir={folder}/other', *cases[name]] for name in cases}
  (folder / 'cases.json').write_text(json.dumps(run | others))
  files = [str(folder / 'cases.json'), str(folder / 'results.json')]
  command = [sys.executable, '-m', 'tests.support.forked_main', *files]
  environment = {**os.environ, 'TORCH_HOME': str(folder / 'torch'), **environment}
  subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
  return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def lean(tmp_path_factory):
  """The folder, and the results of all commands."""
  folder = tmp_path_factory.mktemp('lean')
  (folder / 'dit.pt').touch()
  cases = {
    name: [argument.format(folder=folder) for argument in arguments]
    for name, (arguments, *_) in LACKING.items()
  }
  path = make_lean(folder / 'missing')
  return folder, run_all(folder, cases, {'PYTHONPATH': str(path)})


def test_the_hook_hides_what_is_not_lean():
  hidden = missing_modules()
  assert {'tensorflow', 'torch', 'clu', 'pytest'} <= hidden
  assert not hidden & {'jax', 'flax', 'orbax', 'sklearn', 'matplotlib', 'PIL', 'tests'}


@pytest.mark.slow
@pytest.mark.unoptimised
def test_every_command_runs(lean):
  folder, found = lean
  for mode in ('prepare', 'train', 'sample', 'evaluate', 'report'):
    assert found[mode]['returncode'] == 0, found[mode]['stderr']
  lines = found['train']['stdout'].splitlines()
  assert len([line for line in lines if 'TensorBoard' in line]) == 1
  assert not (folder / 'run' / 'logs').exists() and any((folder / 'report').iterdir())


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('name', LACKING)
def test_what_needs_a_package_more_names_it(lean, name):
  folder, results = lean
  found = results[name]
  assert found['returncode'] == 2, found['stderr']
  assert 'Traceback' not in found['stderr']
  for part in LACKING[name][1:]:
    assert part.format(folder=folder) in found['stderr'], found['stderr']
  assert 'docs/install.md' in found['stderr']


@pytest.mark.slow
@pytest.mark.unoptimised  # As the commands of the other installation may have been.
def test_numbers_and_images_are_those_of_the_full_installation(lean, tmp_path):
  assert run_all(tmp_path, {}, {})['report']['returncode'] == 0
  assert any((tmp_path / 'run' / 'logs').iterdir())
  folders = [folder / 'run' for folder in (lean[0], tmp_path)]
  lines = [(folder / 'metrics.jsonl').read_text().splitlines() for folder in folders]
  assert len(lines[0]) >= 4
  for ours, theirs in zip(*(map(json.loads, texts) for texts in lines), strict=True):
    for name in ('step', 'loss', 'grad_norm', 'holdout_loss'):
      assert ours.get(name) == theirs.get(name)
  parts = [sorted((folder / 'samples').glob('*/part-*.npz')) for folder in folders]
  assert parts[0]
  for ours, theirs in zip(*parts, strict=True):
    np.testing.assert_array_equal(np.load(ours)['images'], np.load(theirs)['images'])
