"""The loop around the step: it counts, shows, logs and asks others to act, and knows no mathematics.

The device is never waited for in between: metrics of step n are read after step n + 1 was handed
over, and only at the steps that are logged.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.errors import DivergedError
from diffusion_jax.runtime import hosts
from diffusion_jax.runtime.interruption import Broken, Interruption
from diffusion_jax.runtime.watchdog import Watchdog

ALLOWED = 10  # Times the longest run of an action so far: what the watchdog grants the next.


class Action(NamedTuple):
  """run(step, state) after every `every` steps, and after the last.

  breakable: whether a signal may break it off.
  """

  every: int
  run: Callable[[int, Any], None]
  breakable: bool = True

  def due(self, step: int, stop: int) -> bool:
    return step % self.every == 0 or step == stop


class Outcome(NamedTuple):
  """The step at which the loop ended, with the last line of the log."""

  state: Any
  step: int
  values: Mapping[str, float]


def run_loop(
  train_step: Callable,
  state: Any,
  batches: Iterator[tuple[int, Any]],
  *,
  start: int,
  stop: int,
  batch_size: int,
  log_every_steps: int,
  learning_rate: Callable[[int], float],
  write: Callable[[int, dict[str, float]], None],
  actions: Sequence[Action],
  max_skipped: int,
  interruption: Interruption,
  save: Callable[[int, Any], None],
  watchdog: Watchdog,
  note_skipped: Callable[[int, Mapping[str, float]], None],
) -> Outcome:
  """Steps start + 1..stop of train_step(step, state, batch, count) -> (state, metrics).

  batches: pairs (count, batch) of dispatch.grouped; the `count` steps up to `step` are handed over as one, and
  their metrics are then arrays (count,). Actions and the log fall between them.
  An interruption ends it between two steps; save(step, state) writes a checkpoint where that cannot be
  waited for. A line of the log averages the steps since the last one, or since `start`: averaged_steps says
  how many, where they are fewer than log_every_steps. note_skipped(step, metrics) is called for each step that
  changed nothing, when it is logged. The watchdog's clock does not run during an action's
  first run, which may compile; each later one may take ALLOWED times as long as the longest before it, and the
  watchdog's seconds.
  Raises: DivergedError at the first log after max_skipped steps in a row without an update.
  """
  pending = None  # (step, metrics since the last log), read one step late
  since_log, lap_start, paused, waited = [], time.perf_counter(), 0.0, 0.0
  last: dict[str, float] = {}
  bar = tqdm(
    total=stop,
    initial=start,
    unit='step',
    dynamic_ncols=True,
    disable=not hosts.is_first(),
    mininterval=0.5 if sys.stderr.isatty() else 20,
  )

  def report(pending):
    nonlocal lap_start, paused, waited, last
    step, metrics = pending
    metrics = jax.device_get(metrics)  # Returns when `step` is done: the time to stop the clock.
    now = time.perf_counter()
    metrics = [own for made in metrics for own in _each(made)]
    step_time = (now - lap_start - paused) / len(metrics)
    images_per_s, data_wait = batch_size / step_time, waited / (step_time * len(metrics))
    lap_start, paused, waited = now, 0.0, 0.0
    watchdog.beat()
    for number, values in enumerate(metrics, step - len(metrics) + 1):
      if values['skipped'] > 0:
        note_skipped(number, values)
    skipped = max(int(m['skipped']) for m in metrics)
    if skipped >= max_skipped:
      raise DivergedError(
        f'training diverged: no loss, gradient or update that could be used in {skipped} steps in a row, up to '
        f'step {step} or shortly before. Those steps changed nothing, but what came before them may be '
        'spoilt: look at the loss in metrics.jsonl before you use a checkpoint. Lower '
        'config.optimizer.learning_rate, config.optimizer.clip_norm or config.optimizer.weight_decay.'
      )
    names = [name for name in metrics[-1] if name != 'skipped']
    means = {name: _finite_mean([m[name] for m in metrics if name in m]) for name in names}
    values = {**means, 'skipped': skipped, 'images_per_s': images_per_s, 'step_time': step_time}
    values |= {'data_wait': data_wait, 'learning_rate': float(learning_rate(step - 1))}
    if len(metrics) < log_every_steps:
      values['averaged_steps'] = len(metrics)
    last = values
    write(step, values | device_memory())
    bar.set_postfix_str(f'loss {values["loss"]:.4f}, {images_per_s:.0f} images/s', refresh=False)

  step = start

  def save_state():
    save(step, state)

  longest: dict[Action, float] = {}  # Seconds of the actions that have run.

  @contextlib.contextmanager
  def timed(action):
    before = longest.get(action)
    with watchdog.paused() if before is None else watchdog.allowing(ALLOWED * before):
      began = time.perf_counter()
      yield
      longest[action] = max(time.perf_counter() - began, before or 0.0)

  def breaking(action):
    return interruption.breakable(save_state) if action.breakable else contextlib.nullcontext()

  with bar:
    with contextlib.suppress(Broken):
      while True:
        asked = time.perf_counter()
        with interruption.breakable(save_state):
          count, batch = next(batches, (0, None))
        waited += time.perf_counter() - asked
        if not count or not interruption.may_begin():
          break
        step += count
        watchdog.beat()
        state, metrics = train_step(step, state, batch, count)
        since_log.append(metrics)
        if pending:
          report(pending)
          pending = None
        if step % log_every_steps == 0 or step == stop:
          pending, since_log = (step, since_log), []
        bar.update(count)
        due = [action for action in actions if action.due(step, stop)]
        if due:
          # Steps that still run do not count as the actions' time.
          jax.block_until_ready(state.step)
          if pending:
            report(pending)
            pending = None
          began = time.perf_counter()
          for action in due:
            with timed(action), breaking(action):
              action.run(step, state)
          paused += time.perf_counter() - began
    if pending:
      report(pending)
  return Outcome(state, step, last)


def device_memory() -> dict[str, float]:
  """{'device_memory'}: bytes in use at the peak on this host's first device, where it counts them."""
  stats = jax.local_devices()[0].memory_stats() or {}  # None on CPU.
  return {'device_memory': stats['peak_bytes_in_use']} if 'peak_bytes_in_use' in stats else {}


def _each(metrics: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The metrics of each step: one, or those along the leading axis."""
  count = np.size(metrics['skipped'])
  return [{name: np.ravel(values)[i] for name, values in metrics.items()} for i in range(count)]


def _finite_mean(values: Sequence[float]) -> float:
  """The mean without skipped steps; NaN if there are only those."""
  finite = [value for value in map(float, values) if np.isfinite(value)]
  return float(np.mean(finite)) if finite else float('nan')
