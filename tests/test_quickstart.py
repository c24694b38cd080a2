"""The quickstart at its real size, judged by scikit-learn and by raw pixels. Minutes long."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

from diffusion_jax.evaluation.fid import distance, feature_stats
from tests.support.samples import load_samples

ROOT = Path(__file__).parents[1]
UNET = ('--config.model.name=unet',)
EDM = (
  '--config.schedule.name=variance_exploding',
  '--config.process.prediction_type=edm',
  '--config.time_sampling.name=log_normal',
  '--config.sample.spacing=karras',
)


def main(workdir, *flags):
  command = [sys.executable, 'main.py', '--config=configs/quickstart.py', f'--workdir={workdir}']
  subprocess.run([*command, f'--config.data.dir={workdir}/data', *flags], cwd=ROOT, check=True)


def pixels(images):
  """(N,8,8,1) uint8 -> (N,64) in scikit-learn's 0..16."""
  return images.reshape(len(images), -1).astype(float) * 16 / 255


@pytest.fixture(scope='module')
def real():
  """split -> (pixels, labels), from scikit-learn itself."""
  x, y = load_digits(return_X_y=True)
  parts = train_test_split(x, y, test_size=297, stratify=y, random_state=0)
  return {'train': (parts[0], parts[2]), 'holdout': (parts[1], parts[3])}


@pytest.fixture(scope='module')
def judge(real):
  """An SVC that knows the real training digits, and scores at least 98% on the held-out ones."""
  svc = SVC(gamma=0.001).fit(*real['train'])
  assert svc.score(*real['holdout']) >= 0.98
  return svc


CASES = [
  pytest.param((), 0.97, marks=pytest.mark.slow),
  pytest.param(UNET, 0.95, marks=pytest.mark.full),
  pytest.param(EDM, 0.97, marks=pytest.mark.full),
]


@pytest.mark.parametrize('flags, label_accuracy', CASES)
def test_quickstart(tmp_path, real, judge, flags, label_accuracy):
  workdir = tmp_path / 'run'
  main(workdir, *flags)
  main(workdir, '--mode=evaluate', '--config.sample.cfg_scale=2')
  images, labels = load_samples(workdir / 'samples' / 'ddim50-cfg2', 1000)
  np.testing.assert_array_equal(np.bincount(labels), 100)
  assert judge.score(pixels(images), labels) >= label_accuracy

  main(workdir, '--mode=evaluate', '--config.sample.cfg_scale=1')
  images, _ = load_samples(workdir / 'samples' / 'ddim50-cfg1', 1000)
  reference = feature_stats(real['holdout'][0])
  real_distance = distance(*feature_stats(real['train'][0]), *reference)
  assert distance(*feature_stats(pixels(images)), *reference) <= 3 * real_distance
