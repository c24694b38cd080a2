"""Shares the rows of an array among processes, in pieces [start, stop)."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

ADVICE = 'give a folder that all processes share, or prepare with one process and copy the set to every host'


def pieces_of(rows: np.ndarray) -> list[list[int]]:
  """Returns ascending numbers as the [start, stop) of their runs."""
  runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
  return [[int(run[0]), int(run[-1]) + 1] for run in runs if len(run)]


def rows_of(pieces: Iterable[Sequence[int]]) -> np.ndarray:
  """Returns the numbers in the pieces."""
  return np.concatenate([np.zeros(0, int), *(np.arange(*piece) for piece in pieces)])


def missing(count: int, done: Iterable[Sequence[int]]) -> list[list[int]]:
  """Returns the pieces of 0..count - 1 that are not in `done`."""
  is_done = np.zeros(count, bool)
  for start, stop in done:
    is_done[start:stop] = True
  return pieces_of(np.flatnonzero(~is_done))


def share(items: Sequence[Any], number: int, count: int) -> Sequence[Any]:
  """Returns part `number` of `count` contiguous parts of nearly equal length."""
  return items[len(items) * number // count : len(items) * (number + 1) // count]


def cut(
  sizes: Sequence[int], pieces: Iterable[Sequence[int]], batch_size: int
) -> Iterator[tuple[int, int]]:
  """Cuts the pieces into batches; none crosses from one part of the array, of these sizes, into another."""
  edges = [0, *itertools.accumulate(sizes)]
  for start, stop in pieces:
    for first, last in itertools.pairwise(edges):
      low, high = max(start, first), min(stop, last)
      yield from ((i, min(i + batch_size, high)) for i in range(low, high, batch_size))
