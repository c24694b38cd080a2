"""metrics.jsonl after an interruption, and Weights & Biases when it is not there."""

import json
import sys

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import logging


def write(path, steps):
  writer = logging.JsonLines(path)
  for step in steps:
    writer.write_scalars(step, {'loss': np.float32(step / 2)})
  writer.close()


def steps_of(path):
  return [json.loads(line)['step'] for line in path.read_text().splitlines()]


def test_lines_that_a_resumed_run_writes_again_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(path, [10, 20, 30])
  with open(path, 'a') as file:
    file.write('{"step": 40, "lo')  # Killed in the middle of a line.
  logging.keep_metrics_until(path, 20)
  write(path, [30])
  assert steps_of(path) == [10, 20, 30]
  assert json.loads(path.read_text().splitlines()[0]) == {'step': 10, 'loss': 5.0}


def test_what_is_not_finite_is_null(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = logging.JsonLines(path)
  writer.write_scalars(1, {'loss': float('nan'), 'skipped': 3})
  writer.close()
  assert path.read_text() == '{"step": 1, "loss": null, "skipped": 3.0}\n'


def test_a_fresh_start_keeps_the_metrics_of_the_run_before(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  logging.keep_metrics_until(path, 0)
  write(path, [10])
  logging.keep_metrics_until(path, 0)
  assert not path.exists()
  (old,) = tmp_path.glob('metrics-until-*.jsonl')
  assert steps_of(old) == [10]


def test_wandb_is_asked_for_but_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install wandb'):
    logging.require_wandb()
