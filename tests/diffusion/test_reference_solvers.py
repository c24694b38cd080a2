"""Final states against diffusers' schedulers, which fixtures/make_reference_solvers.py records and names."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.plugins import make_plugin
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import base, ddim, ddpm, dpmpp_2m
from tests.diffusion.test_schedules import build, times
from tests.support.samplers import run_by_steps

FIXTURES = Path(__file__).parents[1] / 'fixtures'
RECORDED = dict(np.load(FIXTURES / 'reference_solvers.npz'))
SAMPLE = (np.arange(768) / 768).reshape(3, 8, 8, 4).transpose(3, 0, 1, 2).astype(np.float32)
NOISE = np.stack(
  [np.random.RandomState(number).standard_normal(SAMPLE.shape) for number in range(20)]
).astype(np.float32)
LINEAR = {'schedule': 'linear', 'prediction': 'eps', 'spacing': 'trailing'}
FLOW = {'schedule': 'rectified_flow', 'prediction': 'velocity', 'spacing': 'shifted'}
V = {**LINEAR, 'prediction': 'v'}
TO_FIRST_ENTRY = {**LINEAR, 'spacing': "trailing, to the table's first entry"}
KARRAS = {
  **LINEAR,
  'spacing': 'karras',
  'sigma_min': 1e-5,
}  # Ours stops at the table's first entry.
CASES = {
  'ddim': ('ddim', {}, LINEAR),
  'ddim-zero_snr': ('ddim', {}, {**V, 'zero_terminal_snr': True}),
  'ddim-eta': ('ddim', {'eta': 1.0}, LINEAR),
  'ddpm': ('ddpm', {}, LINEAR),
  'dpmpp_2m': ('dpmpp_2m', {}, LINEAR),
  'dpmpp_2m-v': ('dpmpp_2m', {}, V),
  'dpmpp_2m-karras': ('dpmpp_2m', {}, KARRAS),
  'dpmpp_2m-sde': ('dpmpp_2m', {'sde': True}, LINEAR),
  'unipc-2': ('unipc', {}, LINEAR),
  'unipc-3': ('unipc', {'order': 3}, LINEAR),
  'unipc-3-v': ('unipc', {'order': 3}, V),
  'deis-2': ('deis', {'order': 2, 'lower_order_final': False}, TO_FIRST_ENTRY),
  'deis-3': ('deis', {'lower_order_final': False}, TO_FIRST_ENTRY),
  'deis-3-v': ('deis', {'lower_order_final': False}, {**TO_FIRST_ENTRY, 'prediction': 'v'}),
  'heun': ('heun', {'variable': 'sigma'}, LINEAR),
  'heun-v': ('heun', {'variable': 'sigma'}, V),
  'euler': ('euler', {}, LINEAR),
  'flow-euler': ('euler', {}, {**FLOW, 'shift': 1.0}),
  'flow-euler-shifted': ('euler', {}, {**FLOW, 'shift': 3.0}),
  'flow-heun': ('heun', {}, {**FLOW, 'spacing': 'from 1 to 1 / T'}),
}


def grid(schedule, spacing, num_steps, **options):
  if spacing == 'from 1 to 1 / T':
    return np.append(np.linspace(1, 1e-3, num_steps), 0)
  if spacing == TO_FIRST_ENTRY['spacing']:
    return np.append(times(schedule, num_steps, 'trailing')[:-1], 1e-3)
  return times(schedule, num_steps, spacing, **options)


def solve(name, counts, monkeypatch):
  """The final states of these numbers of steps."""
  sampler, options, setting = CASES[name]
  kinds = dict(setting)
  changes = {'zero_terminal_snr': True} if kinds.pop('zero_terminal_snr', False) else {}
  schedule, spacing = build(kinds.pop('schedule'), **changes), kinds.pop('spacing')
  process = Process(schedule, kinds.pop('prediction'))
  solver = make_plugin('diffusion.samplers', sampler, schedule=schedule, **options)
  monkeypatch.setattr(base, 'fold_in_each', lambda keys, number: number)
  for module in (ddim, ddpm, dpmpp_2m):
    monkeypatch.setattr(module, 'normal_each', lambda number, shape: jnp.asarray(NOISE)[number])

  def denoise(x, t):
    time = schedule.network_time(t)
    if spacing == 'karras':  # As the reference rounds what its network sees.
      time = jnp.round(time)
    return process.to_prediction(x * time / (time + 1), x, t)

  grids = [grid(schedule, spacing, num_steps, **kinds) for num_steps in counts]
  return run_by_steps(solver, denoise, SAMPLE, (), grids)


def relative_error(found, expected):
  return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def check(name, reference, monkeypatch):
  counts = (5, 10, 20)
  for num_steps, found in zip(counts, solve(name, counts, monkeypatch)):
    error = relative_error(found, reference[f'{name}/{num_steps}'])
    assert error <= 1e-4, num_steps


@pytest.mark.parametrize('name', CASES)
def test_final_states_are_the_recorded_ones(name, monkeypatch):
  check(name, RECORDED, monkeypatch)


@pytest.fixture(scope='module')
def computed(tmp_path_factory):
  """What the installed diffusers computes, in a process without TensorFlow."""
  path = tmp_path_factory.mktemp('reference') / 'solvers.npz'
  script = FIXTURES / 'make_reference_solvers.py'
  environment = {**os.environ, 'HF_HUB_OFFLINE': '1', 'USE_TF': '0', 'CUDA_VISIBLE_DEVICES': ''}
  subprocess.run([sys.executable, script, path], check=True, env=environment, timeout=300)
  return dict(np.load(path))


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_final_states_are_those_of_the_installed_library(name, computed, monkeypatch):
  check(name, computed, monkeypatch)
