"""Decodes images in all cores into one array on disk, so that a killed run can go on.

What is finished is noted in a journal after it is safely on disk. Every image has its place from the
start, so neither the order of the work nor an interruption changes a byte of the result.
"""

import contextlib
import errno
import functools
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePath
from typing import NamedTuple

from tqdm import tqdm

from diffusion_jax.data.decode import FORMATS, BadImage, to_pixels
from diffusion_jax.data.readers.base import Entry, Payload, Reader, Slice
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files

TASK_IMAGES = 32
ALONE_SECONDS = 1.0  # Shorter work starts no other processes.
JOURNAL_SECONDS = 1.0
JOURNAL = 'journal'  # Beside the images.


class Target(NamedTuple):
  """The place of the images: row i of the array that begins at byte `offset` of the file."""

  path: str
  offset: int
  size: int
  channels: int


class Result(NamedTuple):
  """rows: finished. bad: row -> why it has no image. odd: row -> what is odd, though it was read.

  small: rows whose image had to be enlarged.
  """

  rows: list[int]
  bad: dict[int, str]
  odd: dict[int, str]
  small: list[int]


def pack_task(target: Target, items: Sequence[tuple[int, str, Payload]]) -> Result:
  """Decodes each (row, name, payload) and writes it to its row. Raises: OSError if it cannot write."""
  rows, bad, odd, small = [], {}, {}, []
  with open(target.path, 'r+b') as file:
    for row, name, payload in items:
      try:
        pixels, found, is_small = to_pixels(content(payload), target.size, target.channels)
      except BadImage as error:
        bad[row] = str(error)
        continue
      expected = FORMATS.get(PurePath(name).suffix.lower(), {found})
      if found not in expected:
        odd[row] = f'named {PurePath(name).suffix}, is {found}'
      data = pixels.tobytes()
      with files.naming(Path(target.path)):
        if os.pwrite(file.fileno(), data, target.offset + row * len(data)) < len(data):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      rows.append(row)
      if is_small:
        small.append(row)
  return Result(rows, bad, odd, small)


def content(payload: Payload) -> bytes:
  """Reads the file's bytes. Raises: BadImage if it cannot be read."""
  if isinstance(payload, BadImage):
    raise payload
  if not isinstance(payload, Slice):
    return payload
  try:
    return payload.read()
  except OSError as error:
    raise BadImage(f'cannot be read ({error.strerror})') from error


class Journal:
  """The finished rows, a line for those of a task; a torn line is ignored."""

  def __init__(self, images: Path):
    self._path, self._images = images.with_name(JOURNAL), images
    self.rows, self.odd, self.small = set(), {}, set()
    self._pending, self._flushed = [], time.monotonic()
    there = self._path.read_text('utf-8', 'replace') if self._path.exists() else ''
    for line in there.splitlines():
      with contextlib.suppress(ValueError, TypeError, AttributeError):
        rows, odd, small = json.loads(line)
        odd = {int(row): text for row, text in odd.items()}
        self._count(list(map(int, rows)), odd, list(map(int, small)))

  def _count(self, rows: list[int], odd: dict[int, str], small: list[int]) -> None:
    self.rows.update(rows)
    self.odd.update(odd)
    self.small.update(small)

  def add(self, result: Result) -> None:
    """Notes finished rows; on disk within about a second."""
    done = result.rows, result.odd, result.small
    self._count(*done)
    self._pending.append(done)
    if time.monotonic() - self._flushed > JOURNAL_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Writes first the pixels, then the note that they are there."""
    files.sync(self._images)
    with files.naming(self._path), open(self._path, 'a') as file:
      # A torn line before is skipped.
      file.writelines(f'\n{json.dumps(done)}\n' for done in self._pending)
      file.flush()
      os.fsync(file.fileno())
    self._pending, self._flushed = [], time.monotonic()


def pack(
  reader: Reader,
  entries: Sequence[Entry],
  target: Target,
  journal: Journal,
  *,
  known_bad: dict[int, str],
  check_bad: Callable[[dict[int, str]], None],
  workers: int,
) -> dict[int, str]:
  """Fills the rows of `entries` that the journal lacks. Returns: row -> why there is no image.

  check_bad is called with the bad rows so far whenever there are more, and may raise.
  Raises: OSError that names the file for a full disk.
  """
  bad = dict(known_bad)
  check_bad(bad)
  missing = [row for row in range(len(entries)) if row not in journal.rows and row not in bad]
  done = len(entries) - len(missing)
  if done > len(bad):
    print(f'going on: {done - len(bad):,} images are there from an interrupted run')
  work = [entries[row] for row in missing]
  items = ((missing[i], work[i].name, payload) for i, payload in reader.payloads(work))
  tasks = iter(lambda: list(itertools.islice(items, TASK_IMAGES)), [])
  results = _results(functools.partial(pack_task, target), tasks, workers)
  bar = tqdm(total=len(entries), initial=done, unit='image', desc='preparing', mininterval=1)
  try:
    with bar, contextlib.closing(results):
      for result in results:
        journal.add(result)
        bar.update(len(result.rows) + len(result.bad))
        if result.bad:
          bad.update(result.bad)
          check_bad(bad)
    journal.flush()
    lacking = [row for row in missing if row not in journal.rows and row not in bad]
    if lacking:
      raise DamagedError(
        f'{reader.origin}: {len(lacking)} images are listed but were not found when it was read, '
        f'first {entries[lacking[0]].where}'
      )
  except BrokenProcessPool as error:
    raise InputError(
      'a decoding process was killed, perhaps for lack of memory; the same command goes on from '
      'what is finished, with --config.data.workers=1 in one process'
    ) from error
  return bad


def _results(run: Callable, tasks: Iterator, workers: int) -> Iterator[Result]:
  """Yields run(task) for all tasks, in any order, a few ahead of the slowest."""
  began = time.monotonic()
  for task in tasks:
    yield run(task)
    if workers > 1 and time.monotonic() - began > ALONE_SECONDS:
      break
  else:
    return
  context = multiprocessing.get_context('forkserver')  # Threads do not survive a plain fork.
  context.set_forkserver_preload(['__main__', __name__])
  others = set(multiprocessing.active_children())
  pool = ProcessPoolExecutor(workers, context, _end_with_parent)
  try:
    waiting = set()
    for task in tasks:
      waiting.add(pool.submit(run, task))
      if len(waiting) >= 4 * workers:
        ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ready)
    yield from (future.result() for future in as_completed(waiting))
  except BaseException:  # Drops begun work: images that no journal notes are decoded again.
    for child in set(multiprocessing.active_children()) - others:
      child.kill()
    raise
  finally:
    pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
  """Ends this process when its parent is killed, and leaves signals to the parent."""
  for number in (signal.SIGINT, signal.SIGTERM):  # Terminals and schedulers send them to all.
    signal.signal(number, signal.SIG_IGN)
  sentinel = multiprocessing.parent_process().sentinel

  def watch():
    multiprocessing.connection.wait([sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
