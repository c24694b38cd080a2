"""Measures what the training loop costs beside the compiled step: data, counting, the log, the bar.

Both run so many steps in turns: the loop of training with its batches from the prepared data, and the bare step
again and again on one batch that the devices hold. Held-out loss, previews and checkpoints are left out.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from scipy import stats

from diffusion_jax.benchmarks import timing
from diffusion_jax.config.options import at_least, option
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.errors import Interrupted
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting.tables import table
from diffusion_jax.runtime import logging, mesh
from diffusion_jax.runtime.interruption import Interruption
from diffusion_jax.runtime.watchdog import Watchdog
from diffusion_jax.training.compilation import Step
from diffusion_jax.training.loop import run_loop
from diffusion_jax.training.state import TrainState

BARE, LOOP = 'the compiled step alone', 'the training loop'
CONFIDENCE = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Loop:
  """The training loop beside the bare step."""

  on_data: ClassVar = True
  in_one_process: ClassVar = False
  experiment: Experiment
  repeats: int
  length: int = option(50, 'Steps of each measurement.', at_least(2))

  def measure(self, folder: Path) -> dict[str, Any]:
    """Measures milliseconds a step of both, in turns; writes a log to `folder`."""
    experiment, sharding = self.experiment, mesh.batch_sharding(self.experiment.mesh)
    step, state = experiment.compile_steps(0), experiment.initial_state()
    held = mesh.to_devices(next(batches(experiment, 1)), sharding)
    found = {BARE: [], LOOP: []}

    def bare(state):
      began = time.perf_counter()
      for number in range(1, self.length + 1):
        state, metrics = step(number, state, held)
      jax.block_until_ready((state, metrics))
      return state, time.perf_counter() - began

    state, _ = bare(state)
    for repeat in range(self.repeats):
      print(f'repeat {repeat + 1} of {self.repeats}', flush=True)
      for name, run in ((BARE, bare), (LOOP, functools.partial(self._loop, folder, step))):
        state, seconds = run(state)
        found[name].append(1e3 * seconds / self.length)
    return {'milliseconds': found}

  def _loop(self, folder: Path, step: Step, state: TrainState) -> tuple[TrainState, float]:
    """Returns: the new state, and the seconds from the first batch on. Raises: Interrupted."""
    config, sharding = self.experiment.config, mesh.batch_sharding(self.experiment.mesh)
    writer = logging.create_writer(folder, wandb_project='', config={})
    with (
      contextlib.closing(writer),
      contextlib.closing(batches(self.experiment, self.length)) as source,
      Interruption() as interruption,
      Watchdog(config.train.watchdog_seconds, folder) as watchdog,
    ):
      arrived = itertools.chain([next(source)], source)
      began = time.perf_counter()
      outcome = run_loop(
        step,
        state,
        ((1, mesh.to_devices(batch, sharding)) for batch in arrived),
        start=0,
        stop=self.length,
        batch_size=config.train.batch_size,
        log_every_steps=config.train.log_every_steps,
        learning_rate=lambda step: 0.0,
        write=writer.write_scalars,
        actions=(),
        max_skipped=config.train.max_skipped,
        interruption=interruption,
        save=lambda *_: None,
        watchdog=watchdog,
        note_skipped=lambda *_: None,
      )
      state, seconds = jax.block_until_ready(outcome.state), time.perf_counter() - began
    if outcome.step < self.length:
      raise Interrupted(
        f'{interruption.requested}: nothing was measured; run the same command again'
      )
    return state, seconds

  def report(self, results: Mapping[str, Any]) -> str:
    """Makes the table, and the interval of the loop's cost."""
    times = results['milliseconds']
    rows = timing.rows(times, '.4g')
    low, mean, high = cost(times[BARE], times[LOOP])
    return (
      f'\n{self.length} steps of {self.experiment.config.train.batch_size} examples in turns, on '
      f'{self.experiment.mesh.size} {jax.devices()[0].device_kind}\n\n'
      f'{table(["", "ms a step", "range"], rows)}\n\n'
      f'the loop costs {mean:+.1%} of a step; {CONFIDENCE:.0%} interval {low:+.1%} .. {high:+.1%}\n'
    )


def batches(experiment: Experiment, count: int) -> Generator[dict[str, np.ndarray], None, None]:
  """The first batches of a training."""
  size = experiment.config.train.batch_size
  return train_batches(
    experiment.step_input,
    seed=experiment.config.seed,
    batch_size=size,
    start_step=0,
    stop_step=count,
    rows=mesh.local_rows(experiment.mesh, size),
    loader=experiment.config.data.loader,
  )


def cost(bare: list[float], loop: list[float]) -> tuple[float, float, float]:
  """The mean of loop / bare - 1 over the repeats, between the ends of its interval by Student's t."""
  shares = np.asarray(loop) / np.asarray(bare) - 1
  mean = float(shares.mean())
  if len(shares) < 2:
    return float('-inf'), mean, float('inf')
  half = stats.sem(shares) * stats.t.ppf((1 + CONFIDENCE) / 2, len(shares) - 1)
  return mean - half, mean, mean + half
