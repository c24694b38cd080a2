"""Shows that a long phase is alive: a bar, or a line where nothing can be counted, as in compiling."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator

import jax
from tqdm import tqdm

FIRST_AFTER = 5.0  # Seconds until the first line.
SHOWN_AFTER = 3.0  # Seconds until a bar appears.


def progress(items: Iterable | None, what: str, total: int | None, **options) -> tqdm:
  """Makes a bar over `items`, or one to be updated by hand, that appears after SHOWN_AFTER."""
  options = {'unit': 'image', 'delay': SHOWN_AFTER, 'mininterval': 1, **options}
  return tqdm(items, what, total, **options)


@contextlib.contextmanager
def alive(what: str, *, first_after: float = FIRST_AFTER) -> Iterator[None]:
  """Prints to stderr how long `what` has taken, after first_after seconds and then ever more rarely.

  Prints above a bar, if there is one, and only on the first of several processes.
  """
  if jax.process_index() > 0:
    yield
    return
  ended, began = threading.Event(), time.perf_counter()

  def tell():
    pause = first_after
    while not ended.wait(pause):
      elapsed = time.perf_counter() - began
      tqdm.write(f'{what}: {elapsed:.0f} s so far', file=sys.stderr)
      sys.stderr.flush()
      pause = max(first_after, elapsed / 2)

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
