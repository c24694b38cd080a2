"""Several steps in one program, for models so small that starting a program takes as long as running it."""

import itertools
from collections.abc import Callable, Generator, Iterator

import jax
import numpy as np

from diffusion_jax.training.objective import Batch
from diffusion_jax.types import PyTree


def grouped(
  batches: Iterator[Batch], start: int, several: int
) -> Generator[tuple[int, Batch], None, None]:
  """Yields (1, batch), or (several, their batches stacked) from every multiple of `several` steps on.

  Steps up to the first multiple, and those left after the last, come one by one.
  """
  step = start
  while held := list(itertools.islice(batches, several - step % several)):
    if len(held) == several > 1:
      yield several, jax.tree.map(lambda *rows: np.stack(rows), *held)
    else:
      for batch in held:
        yield 1, batch
    step += len(held)


def counts(start: int, stop: int, several: int) -> list[int]:
  """Which lengths `grouped` yields for the steps start + 1..stop."""
  whole = stop // several > -(-start // several)
  singles = start % several or stop % several or several == 1
  return [1] * bool(singles) + [several] * (several > 1 and whole)


def repeated(step: Callable, count: int) -> Callable:
  """`count` steps (state, batch, ...) -> (state, metrics) as one, on stacked batches, with metrics (count,).

  Unrolled on CPU, where gradients of convolutions are slow inside a loop.
  """
  if count == 1:
    return step
  unroll = count if jax.default_backend() == 'cpu' else 1

  def steps(state: PyTree, batches: Batch, *others: PyTree) -> tuple[PyTree, PyTree]:
    return jax.lax.scan(lambda s, batch: step(s, batch, *others), state, batches, unroll=unroll)

  return steps
