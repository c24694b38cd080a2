"""The quickstart at its real size, judged by scikit-learn and by raw pixels. Minutes long."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import SVC

from diffusion_jax.data import digits
from diffusion_jax.evaluation.fid import distance, moments
from diffusion_jax.stages.sample import load

ROOT = Path(__file__).parents[1]


def main(workdir, *flags):
  command = [sys.executable, 'main.py', '--config=configs/quickstart.py', f'--workdir={workdir}']
  subprocess.run([*command, f'--config.data.dir={workdir}/data', *flags], cwd=ROOT, check=True)


def pixels(images):
  """(N,8,8,1) uint8 -> (N,64) in scikit-learn's 0..16."""
  return images.reshape(len(images), -1).astype(float) * 16 / 255


@pytest.fixture(scope='module')
def real():
  return {
    split: digits.build(split=split, holdout_size=297, split_seed=0)
    for split in ('train', 'holdout')
  }


@pytest.fixture(scope='module')
def judge(real):
  """An SVC that knows the real training digits, and scores at least 98% on the held-out ones."""
  svc = SVC(gamma=0.001).fit(pixels(real['train'].images), real['train'].labels)
  assert svc.score(pixels(real['holdout'].images), real['holdout'].labels) >= 0.98
  return svc


@pytest.mark.slow
@pytest.mark.parametrize('model, label_accuracy', [('dit', 0.97), ('unet', 0.95)])
def test_quickstart(tmp_path, real, judge, model, label_accuracy):
  workdir = tmp_path / 'run'
  main(workdir, f'--config.model.name={model}')
  main(workdir, '--mode=evaluate', '--config.sample.cfg_scale=2')
  images, labels = load(workdir / 'samples' / 'ddim50-cfg2', 1000)
  np.testing.assert_array_equal(np.bincount(labels), 100)
  assert judge.score(pixels(images), labels) >= label_accuracy

  main(workdir, '--mode=evaluate', '--config.sample.cfg_scale=1')
  images, _ = load(workdir / 'samples' / 'ddim50-cfg1', 1000)
  reference = moments(pixels(real['holdout'].images))
  real_distance = distance(*moments(pixels(real['train'].images)), *reference)
  assert distance(*moments(pixels(images)), *reference) <= 3 * real_distance
