"""Losses that are not finite: passed over once, the end of a training that has no others, exit 4."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.data.pipeline import permutation
from diffusion_jax.errors import DivergedError
from diffusion_jax.run import load_run
from diffusion_jax.training import compilation
from tests.conftest import tiny_mapping
from tests.support.killing import steps
from tests.support.tiny_flags import TINY


class Poisoned:
  """An objective whose loss and gradients are NaN from one step to another."""

  def __init__(self, objective, first, last):
    self.objective, self.first, self.last = objective, first, last

  def __getattr__(self, name):
    return getattr(self.objective, name)

  def gradients(self, state, *arguments):
    grads, metrics = self.objective.gradients(state, *arguments)
    is_bad = (state.step + 1 >= self.first) & (state.step + 1 <= self.last)
    factor = jnp.where(is_bad, jnp.nan, 1.0)
    return jax.tree.map(lambda g: g * factor, grads), {**metrics, 'loss': metrics['loss'] * factor}


def train(tmp_path, digits, **changes):
  changes = {**TINY, 'data.dir': str(digits), 'train.log_every_steps': 1, **changes}
  run_mode('train', tiny_mapping(tmp_path, **changes), {}, tmp_path / 'run')


def poison(monkeypatch, first, last):
  make = compilation.make_train_step
  monkeypatch.setattr(
    compilation,
    'make_train_step',
    lambda objective, *rest, **options: make(Poisoned(objective, first, last), *rest, **options),
  )


def lines(tmp_path):
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  return {x['step']: x for x in map(json.loads, text.splitlines()) if 'loss' in x}


def assert_finite(tmp_path):
  for step in steps(tmp_path / 'run'):
    weights = load_run(tmp_path / 'run', checkpoint=str(step)).weights
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(weights.parts)))


@pytest.mark.slow
def test_one_step_that_is_not_finite_is_passed_over(tmp_path, digits, monkeypatch):
  poison(monkeypatch, 3, 3)
  train(tmp_path, digits, **{'train.num_steps': 6})
  found = lines(tmp_path)
  assert [found[step]['skipped'] for step in range(1, 7)] == [0, 0, 1, 0, 0, 0]
  assert [step for step in found if found[step]['loss'] is None] == [3]
  (line,) = map(json.loads, (tmp_path / 'run' / 'skipped.jsonl').read_text().splitlines())
  assert (line['step'], line['loss'], line['grad_norm']) == (3, None, None)
  assert line['examples'] == permutation(0, 0, 1500)[32:48].tolist()  # The third batch of 16.
  assert_finite(tmp_path)
  assert steps(tmp_path / 'run')[-1] == 6


def test_steps_that_stay_not_finite_end_the_run(tmp_path, digits, monkeypatch):
  poison(monkeypatch, 4, 1000)
  changes = {'train.num_steps': 1000, 'train.max_skipped': 3, 'checkpoint.keep_newest': 5}
  with pytest.raises(
    DivergedError, match=r'3 steps in a row, .*config\.optimizer\.learning_rate'
  ) as stop:
    train(tmp_path, digits, **changes)
  assert stop.value.exit_code == 4 and '\n' not in str(stop.value)
  assert 2 in steps(tmp_path / 'run') and max(steps(tmp_path / 'run')) <= 8
  assert_finite(tmp_path)


@pytest.mark.slow
def test_a_learning_rate_of_a_million_ends_the_run(tmp_path, digits):
  changes = {'train.num_steps': 1000, 'optimizer.learning_rate': 1e6}
  with pytest.raises(DivergedError, match=r'config\.optimizer\.learning_rate') as stop:
    train(tmp_path, digits, **changes)
  assert stop.value.exit_code == 4
  assert_finite(tmp_path)
