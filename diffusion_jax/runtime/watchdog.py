"""Ends a training that hangs, as in a collective that another process never enters."""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.runtime import hosts

HUNG = 70  # Exit code.
MOST_SECONDS = 1.0  # Between looks at the clock.


class Watchdog:
  """Context manager: the process ends when `seconds` pass without a beat; 0 waits for ever.

  Stacks of all threads go to stderr and to DIR/logs/stacks-N.txt, N the number of the process.
  """

  def __init__(self, seconds: float, workdir: Path):
    self._seconds = seconds
    self._path = workdir / 'logs' / f'stacks-{hosts.number()}.txt'
    self._ended, self._paused, self._more = threading.Event(), 0, 0.0
    self.beat()

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *unused) -> None:
    self._ended.set()

  def beat(self) -> None:
    """Starts the clock again: something has been done."""
    self._last = time.monotonic()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops the clock, for what may take any time, as compiling."""
    self._paused += 1
    try:
      yield
    finally:
      self.beat()
      self._paused -= 1

  @contextlib.contextmanager
  def allowing(self, more: float) -> Iterator[None]:
    """Allows so many seconds more, for what has taken longer before."""
    self.beat()
    self._more = more
    try:
      yield
    finally:
      self.beat()
      self._more = 0.0

  def _watch(self) -> None:
    looked, pause = time.monotonic(), min(MOST_SECONDS, self._seconds / 10)
    while not self._ended.wait(pause):
      now = time.monotonic()
      if now - looked > 10 * pause:  # The process itself was stopped, as by SIGSTOP.
        self.beat()
      looked = now
      if not self._paused and now - self._last > self._seconds + self._more:
        self._bite(now - self._last)

  def _bite(self, waited: float) -> None:
    text = (
      f'\nno step has ended for {waited:.0f} s (config.train.watchdog_seconds {self._seconds:g}): ending '
      f'with the stacks of all threads in {self._path}. If a step may take that long, raise the limit; '
      'otherwise the same command goes on from the last checkpoint\n'
    )
    with contextlib.suppress(OSError):
      faulthandler.dump_traceback(2)
      self._path.parent.mkdir(parents=True, exist_ok=True)
      with open(self._path, 'w') as file:
        faulthandler.dump_traceback(file)
      os.write(2, text.encode())
    os._exit(HUNG)
