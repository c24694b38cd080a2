"""Times benchmarks. A benchmark is a file that defines `build(experiment, repeats, ...)`.

It returns something with measure(folder) -> results, JSON-ready, and report(results) -> text; on_data says
whether it needs prepared data, in_one_process whether what it compares with runs on one host.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

Speeds = dict[str, list[float]]  # Name -> a number a repeat; the median counts.


def seconds(run: Callable[[], Any]) -> float:
  """Measures the wall-clock time of one call."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def steady_seconds(run: Callable[[], Any], wait: Callable[[Any], Any], least: float) -> float:
  """Measures one call of several in a row, of `least` seconds at the least, after one call to warm up.

  wait: waits until what a call returned is done; it is called after the last one alone, because launching
  call n + 1 may overlap with computing call n.
  """
  first = seconds(lambda: wait(run()))
  count = max(1, int(np.ceil(least / first)))

  def several():
    for _ in range(count):
      made = run()
    wait(made)

  return seconds(several) / count


def rows(speeds: Speeds, form: str) -> list[list[str]]:
  """Makes a row of a table for each name: itself, the median, the range."""
  return [
    [name, f'{np.median(s):{form}}', f'{min(s):{form}} .. {max(s):{form}}']
    for name, s in speeds.items()
  ]
