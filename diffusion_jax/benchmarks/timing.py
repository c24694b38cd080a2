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


def rows(speeds: Speeds, form: str) -> list[list[str]]:
  """Makes a row of a table for each name: itself, the median, the range."""
  return [
    [name, f'{np.median(s):{form}}', f'{min(s):{form}} .. {max(s):{form}}']
    for name, s in speeds.items()
  ]
