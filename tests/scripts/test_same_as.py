"""The comparison of scripts/same_as.py sees one changed number, array, sample, metric or order."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

SCRIPTS = Path(__file__).parents[2] / 'scripts'


@pytest.fixture(scope='module')
def compare_runs():
  sys.path.insert(0, str(SCRIPTS))
  try:
    module = importlib.import_module('compare_runs')
    module.ARRAYS, module.RESHAPED = [], []  # Nothing has another name in these tests.
    yield module
  finally:
    sys.path.remove(str(SCRIPTS))


def write_state(workdir, step, **changes):
  state = {'params': {'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3)}}}
  state |= {'averages': {'a': {'kernel': np.ones((2, 3), np.float32)}}, 'step': np.int32(step)}
  folder = workdir / 'checkpoints' / str(step) / 'state'
  shutil.rmtree(folder, ignore_errors=True)
  ocp.PyTreeCheckpointer().save(folder, state | changes)


def write_metrics(workdir, loss=0.5, holdout=0.25):
  lines = [{'step': 1, 'loss': 1.0, 'images_per_s': np.random.rand()}, {'step': 2, 'loss': loss}]
  lines.append({'step': 2, 'holdout_loss': holdout})
  (workdir / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)))


def write_samples(workdir, pixel=7):
  (workdir / 'samples' / 'a').mkdir(parents=True, exist_ok=True)
  images = np.zeros((4, 2, 2, 1), np.uint8)
  images[3, 0, 0] = pixel
  for part in (slice(0, 2), slice(2, 4)):
    index = np.arange(4)[part][::-1]
    path = workdir / 'samples' / 'a' / f'part-{part.start:08d}.npz'
    np.savez(path, images=images[index], labels=index % 3, index=index)


def write_eval(workdir, fid=2.5):
  (workdir / 'eval').mkdir(exist_ok=True)
  (workdir / 'eval' / 'a.json').write_text(json.dumps({'metrics': {'frechet_distance': fid}}))


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
  root = tmp_path_factory.mktemp('same')
  for side in ('ref', 'here'):
    for workdir in (root / side / 'ddpm', root / side / 'ddpm-resumed'):
      workdir.mkdir(parents=True)
      write_state(workdir, 2)
      write_metrics(workdir)
      write_samples(workdir)
      write_eval(workdir)
    np.save(root / side / 'order.npy', np.arange(5))
  return root


@pytest.fixture
def root(pristine, tmp_path):
  return shutil.copytree(pristine, tmp_path / 'same')


def test_equal_runs_have_no_difference(compare_runs, root):
  assert compare_runs.compare(root, ['ddpm']) == []


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda here: write_metrics(here, loss=0.5 + 1e-9), ['train loss', '1 of 2 steps']),
    (lambda here: write_metrics(here, holdout=0.26), ['held out holdout_loss']),
    (lambda here: write_samples(here, pixel=8), ['samples', 'largest difference 1']),
    (lambda here: write_eval(here, fid=2.6), ['frechet_distance', '2.6']),
    (lambda here: np.save(here.parent / 'order.npy', np.arange(5)[::-1]), ['order of the data']),
  ],
)
def test_it_names_what_differs(compare_runs, root, change, words):
  change(root / 'here' / 'ddpm')
  (line,) = compare_runs.compare(root, ['ddpm'])
  assert all(word in line for word in words), line


def test_one_bit_of_one_array_differs_from_the_other_commit_and_from_the_resumed_run(
  compare_runs, root
):
  kernel = np.ones((2, 3), np.float32)
  kernel[0, 0] = np.nextafter(np.float32(1), np.float32(2))
  write_state(root / 'here' / 'ddpm', 2, averages={'a': {'kernel': kernel}})
  between, resumed = compare_runs.compare(root, ['ddpm'])
  assert '1 of 1 arrays of averages' in between and 'averages/a/kernel' in between
  assert 'here: a resumed run' in resumed


def test_tables_of_names_map_what_was_renamed_and_reshaped(compare_runs, root, monkeypatch):
  new = {'b': {'kernel': np.arange(6, dtype=np.float32)}}
  for name in ('ddpm', 'ddpm-resumed'):
    write_state(root / 'here' / name, 2, params=new)
  assert any('only in REF' in line for line in compare_runs.compare(root, ['ddpm']))
  monkeypatch.setattr(compare_runs, 'ARRAYS', [('^params/a/', 'params/b/')])
  monkeypatch.setattr(compare_runs, 'RESHAPED', ['^params/b/kernel'])
  assert compare_runs.compare(root, ['ddpm']) == []
