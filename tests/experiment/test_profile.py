"""A trace of some steps, and the operations in it."""

import gzip
import json

import jax
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.experiment.profile import Operation, Profile, operations
from tests.conftest import tiny_mapping


def test_training_traces_the_steps_that_it_is_asked_for(tmp_path, capsys):
  mapping = tiny_mapping(tmp_path, **{'train.profile_steps': (2, 3)})
  run_mode('train', mapping, {}, tmp_path / 'run')
  (trace,) = (tmp_path / 'run' / 'profile').glob('plugins/profile/*/*.xplane.pb')
  assert trace.stat().st_size > 1000
  found = operations(tmp_path / 'run' / 'profile')
  assert any('fusion' in operation.name for operation in found)
  times = [operation.milliseconds for operation in found]
  assert times == sorted(times, reverse=True) and times[-1] >= 0 < times[0]
  table = (tmp_path / 'run' / 'profile' / 'operations.txt').read_text()
  assert found[0].name in table and 'trace of steps 2 to 3' in capsys.readouterr().out


def test_only_those_steps_are_traced(tmp_path, monkeypatch):
  events = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: events.append('begins'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append('ends'))
  profile = Profile((2, 3), tmp_path, str)
  step = profile.around(lambda number, state, batch, count: events.append(number))
  for number in range(1, 6):
    step(number, None, None, 1)
  profile.close()
  assert events == [1, 'begins', 2, 3, 'ends', 4, 5]


@pytest.mark.parametrize(
  'steps, expected',
  [
    ((5, 9), [4, 'begins', 8, 12, 'ends', 16]),
    ((8, 8), [4, 'begins', 8, 'ends', 12, 16]),
    ((1, 4), ['begins', 4, 'ends', 8, 12, 16]),
  ],
)
def test_all_steps_of_a_dispatch_are_traced(tmp_path, monkeypatch, steps, expected):
  events = []
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda *_, **__: events.append('begins'))
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: events.append('ends'))
  profile = Profile(steps, tmp_path, str)
  step = profile.around(lambda number, state, batch, count: events.append(number))
  for number in range(4, 20, 4):
    step(number, None, None, 4)
  assert events == expected


def test_on_a_gpu_an_operation_counts_once(tmp_path):
  """Its trace has a thread of operations beside the streams that run them."""

  def event(thread, name, duration, **args):
    return {'ph': 'X', 'pid': 1, 'tid': thread, 'name': name, 'dur': duration, 'args': args}

  threads = [
    {'ph': 'M', 'name': 'thread_name', 'pid': 1, 'tid': tid, 'args': {'name': name}}
    for tid, name in ((7, 'XLA Ops'), (8, 'Stream #13'))
  ]
  events = [
    *threads,
    event(7, 'fusion.1', 1500.0, hlo_op='fusion.1'),
    event(8, 'kernel', 1400.0, hlo_op='fusion.1'),
    event(7, 'gemm', 2000.0, hlo_op='gemm'),
    event(7, 'gemm', 2000.0, hlo_op='gemm'),
    event(9, 'python', 9000.0),
    event(7, 'while.2', 5000.0, hlo_op='while.2'),
  ]
  folder = tmp_path / 'plugins' / 'profile' / '2026'
  folder.mkdir(parents=True)
  with gzip.open(folder / 'host.trace.json.gz', 'wt') as file:
    json.dump({'traceEvents': events}, file)
  assert operations(tmp_path) == [Operation('gemm', 2, 4.0), Operation('fusion.1', 1, 1.5)]
  assert operations(tmp_path / 'none') == []
