"""Decodes images in all cores, of several hosts too, into one array on disk, so that a killed run can go on.

What is finished is noted in a journal, one a host, after it is safely on disk. Every image has its place from
the start, so neither the order of the work nor an interruption changes a byte of the result.
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
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from diffusion_jax.data.decode import FORMATS, BadImage, to_pixels
from diffusion_jax.data.readers.base import Entry, Payload, Reader, Slice
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files

TASK_IMAGES = 32
ALONE_SECONDS = 1.0  # Shorter work starts no other processes.
JOURNAL_SECONDS = 1.0
# Beside the images: process N > 0 of several keeps journal-N.
JOURNAL, JOURNALS = 'journal', 'journal*'


class Target(NamedTuple):
  """The place of the images: row i of the array that begins at byte `offset` of the file."""

  path: str
  offset: int
  size: int
  channels: int


class Result(NamedTuple):
  """rows: finished row -> checksum. bad: row -> why it has no image.

  odd: row -> what is odd, though it was read. small: rows whose image had to be enlarged.
  """

  rows: dict[int, int]
  bad: dict[int, str]
  odd: dict[int, str]
  small: list[int]


def pack_task(target: Target, items: Sequence[tuple[int, str, Payload]]) -> Result:
  """Decodes each (row, name, payload) and writes it to its row. Raises: OSError if it cannot write."""
  rows, bad, odd, small = {}, {}, {}, []
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
      rows[row] = zlib.crc32(data)
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
  """The finished rows, a line for those of a task; a torn line is ignored.

  Process `number` of several writes one of its own. All that are there are read.
  """

  def __init__(self, images: Path, number: int = 0):
    self._path = images.with_name(f'{JOURNAL}-{number}' if number else JOURNAL)
    self._images = images
    self.rows, self.odd, self.small = {}, {}, set()
    self._pending, self._flushed = [], time.monotonic()
    paths = sorted(images.parent.glob(JOURNALS))
    self.is_shared = len(paths) > 1
    for path in paths:
      for line in path.read_text('utf-8', 'replace').splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
          rows, odd, small = json.loads(line)
          rows = {int(row): int(checksum) for row, checksum in rows.items()}
          odd = {int(row): text for row, text in odd.items()}
          self._count(rows, odd, list(map(int, small)))

  def _count(self, rows: dict[int, int], odd: dict[int, str], small: list[int]) -> None:
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


def lacking(journal: Journal, count: int, bad: Mapping[int, str]) -> np.ndarray:
  """Lists the rows of 0..count - 1 that are neither finished nor known to be bad."""
  return np.setdiff1d(np.arange(count), [*journal.rows, *bad])


def altered(images: np.ndarray, journal: Journal) -> list[int]:
  """Lists finished rows whose pixels are not what was written, as where two hosts write to one page at once."""
  return [row for row, checksum in journal.rows.items() if zlib.crc32(images[row]) != checksum]


def pack(
  reader: Reader,
  entries: Sequence[Entry],
  rows: Sequence[int],
  target: Target,
  journal: Journal,
  *,
  check_bad: Callable[[dict[int, str]], None],
  workers: int,
  check: Callable[[], None] = lambda: None,
  hidden: bool = False,
) -> dict[int, str]:
  """Fills these rows of the images of `entries`. Returns: row -> why there is no image.

  check_bad is called with the bad ones so far whenever there are more, and may raise; so is check, often.
  hidden: shows no bar. Raises: OSError that names the file for a full disk.
  """
  bad: dict[int, str] = {}
  work = [entries[row] for row in rows]
  items = ((int(rows[i]), work[i].name, payload) for i, payload in reader.payloads(work))
  tasks = iter(lambda: list(itertools.islice(items, TASK_IMAGES)), [])
  results = _results(functools.partial(pack_task, target), tasks, workers)
  options = {'unit': 'image', 'desc': 'preparing', 'mininterval': 1, 'disable': hidden}
  try:
    with tqdm(total=len(rows), **options) as bar, contextlib.closing(results):
      for result in results:
        journal.add(result)
        bar.update(len(result.rows) + len(result.bad))
        check()
        if result.bad:
          bad.update(result.bad)
          check_bad(bad)
    journal.flush()
    lost = [row for row in rows if row not in journal.rows and row not in bad]
    if lost:
      raise DamagedError(
        f'{reader.origin}: {len(lost)} images are listed but were not found when it was read, '
        f'first {entries[lost[0]].where}'
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
