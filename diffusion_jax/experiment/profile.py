"""Writes a trace of some training steps, and a table of the operations that took the longest."""

import collections
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax.reporting.tables import table
from diffusion_jax.runtime import files, hosts

FOLDER, TABLE = 'profile', 'operations.txt'
MOST = 25  # Operations in the table.
HOLDERS = ('while', 'conditional', 'call')  # Operations whose time is that of others.


class Operation(NamedTuple):
  """An operation of the compiled step: calls and milliseconds in all, on the devices of this host."""

  name: str
  calls: int
  milliseconds: float


class Profile:
  """Traces the steps from `first` to `last`, both included, into DIR/profile; () traces none.

  TensorBoard and Perfetto open the trace. The host waits for the devices before and after those steps.
  """

  def __init__(self, steps: tuple[int, ...], workdir: Path, say: Callable[[str], None]):
    self._first, self._last = steps or (0, 0)
    self._folder, self._say = workdir / FOLDER, say
    self._running = False

  def around(self, train_step: Callable) -> Callable:
    """Returns (step, state, batch, count) -> (state, metrics), traced.

    The `count` steps up to `step` are one program, and traced together.
    """

    def traced(step: int, state: Any, batch: Any, count: int) -> Any:
      if step - count < self._first <= step:
        self._start(state)
      made = train_step(step, state, batch, count)
      if step - count < self._last <= step:
        jax.block_until_ready(made)
        self.close()
      return made

    return traced if self._first else train_step

  def _start(self, state: Any) -> None:
    jax.block_until_ready(state)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(str(self._folder), profiler_options=options)
    self._running = True

  def close(self) -> None:
    """Ends the trace, also where training ends before the last of the steps, and writes the table."""
    if not self._running:
      return
    self._running = False
    jax.profiler.stop_trace()
    found = operations(self._folder) if hosts.is_first() else []
    if found:
      files.write(self._folder / TABLE, report(found) + '\n')
      self._say(report(found[:MOST]))
    self._say(f'trace of steps {self._first:,} to {self._last:,} in {self._folder}')


def operations(folder: Path) -> list[Operation]:
  """Lists the operations of the newest trace in `folder`, the longest first."""
  traces = sorted(folder.glob('plugins/profile/*/*.trace.json.gz'), key=lambda p: p.stat().st_mtime)
  if not traces:
    return []
  with gzip.open(traces[-1]) as file:
    events = json.load(file)['traceEvents']
  lines = {  # Threads of the trace: on a GPU that of the operations repeats what streams show.
    (e['pid'], e.get('tid')): e['args']['name'] for e in events if e.get('name') == 'thread_name'
  }
  work = [e for e in events if e.get('ph') == 'X' and _is_work(e.get('args', {}))]
  whole = [e for e in work if lines.get((e['pid'], e['tid'])) == 'XLA Ops']
  calls, times = collections.Counter(), collections.Counter()
  for event in whole or work:
    name = event['args']['hlo_op']
    calls[name] += 1
    times[name] += event['dur'] / 1000
  return [Operation(name, calls[name], time) for name, time in times.most_common()]


def _is_work(args: dict[str, Any]) -> bool:
  return 'hlo_op' in args and not args['hlo_op'].startswith(HOLDERS)


def report(found: list[Operation]) -> str:
  """Makes a table."""
  total = sum(operation.milliseconds for operation in found)
  rows = [
    [o.name, f'{o.calls:,}', f'{o.milliseconds:.3g} ms', f'{o.milliseconds / total:.1%}']
    for o in found
  ]
  return table(['operation', 'calls', 'time', 'share'], rows)
