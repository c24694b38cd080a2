"""Decodes images in all cores into one array on disk, so that a killed run can go on.

What is finished is noted in a journal after it is safely on disk. Every image has its place from the
start, so neither the order of the work nor an interruption changes a byte of the result.
"""

import contextlib
import errno
import functools
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from diffusion_jax.data.decode import FORMATS, BadImage, to_pixels
from diffusion_jax.data.readers.base import Entry, Payload, Reader, Slice
from diffusion_jax.errors import DamagedError, InputError

TASK_IMAGES = 32
ALONE_SECONDS = 1.0  # What takes no longer is done without starting other processes.
JOURNAL_SECONDS = 1.0
JOURNAL = 'journal'  # Beside the images.


class Target(NamedTuple):
  """Where images go: row i of the array that begins at byte `offset` of the file."""

  path: str
  offset: int
  size: int
  channels: int

  @property
  def row_bytes(self) -> int:
    return self.size * self.size * self.channels


class Result(NamedTuple):
  """rows: finished. bad: row -> why it has no image. odd: row -> what is odd, though it was read.

  small: rows whose image had to be enlarged.
  """

  rows: list[int]
  bad: dict[int, str]
  odd: dict[int, str]
  small: list[int]


def create_images(path: Path, count: int, size: int, channels: int) -> Target:
  """An .npy file for count images, its space reserved, or the one that is there already.

  Raises: InputError if the disk has no room.
  """
  shape = (count, size, size, channels)
  header = io.BytesIO()
  description = {'descr': '|u1', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(header, description)
  header = header.getvalue()
  target = Target(str(path), len(header), size, channels)
  whole = path.exists() and path.stat().st_size == len(header) + count * target.row_bytes
  if not whole:  # What a journal says about another file is void.
    path.with_name(JOURNAL).unlink(missing_ok=True)
  with open(path, 'r+b' if whole else 'w+b') as file:
    file.write(header)
    try:
      _reserve(file.fileno(), target.offset + count * target.row_bytes)
    except OSError as error:
      raise disk_error(error, path, count * target.row_bytes) from error
  return target


def _reserve(descriptor: int, size: int) -> None:
  if hasattr(os, 'posix_fallocate'):
    os.posix_fallocate(descriptor, 0, size)
  else:
    os.ftruncate(descriptor, size)


def disk_error(error: OSError, path: Path, needed: int) -> InputError:
  """A failed write as a message; NumPy's, of a write that was cut short, carries no number."""
  number = error.errno or errno.ENOSPC
  full = number in (errno.ENOSPC, errno.EDQUOT)
  size = f'{needed:,} bytes are needed: ' if needed else ''
  advice = f'; {size}make room, and the same command goes on'
  return InputError(f'{path}: {os.strerror(number)}' + (advice if full else ''))


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
  """A failed write becomes a message that names the file. Raises: InputError."""
  try:
    yield
  except OSError as error:
    raise disk_error(error, path, 0) from error


def pack_task(target: Target, items: Sequence[tuple[int, str, Payload]]) -> Result:
  """Decodes (row, name, payload) and writes each to its row. Raises: OSError if it cannot write."""
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
      if os.pwrite(file.fileno(), data, target.offset + row * target.row_bytes) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      rows.append(row)
      if is_small:
        small.append(row)
  return Result(rows, bad, odd, small)


def content(payload: Payload) -> bytes:
  """Raises: BadImage if the file cannot be read."""
  if isinstance(payload, BadImage):
    raise payload
  if not isinstance(payload, Slice):
    return payload
  try:
    return payload.read()
  except OSError as error:
    raise BadImage(f'cannot be read ({error.strerror})') from error


class Journal:
  """The finished rows, a line a flush; a torn last line is ignored."""

  def __init__(self, images: Path):
    path = images.with_name(JOURNAL)
    self.rows: set[int] = set()
    self.odd: dict[int, str] = {}
    self.small: set[int] = set()
    lines = path.read_text('utf-8', 'replace').splitlines() if path.exists() else []
    for line in lines:
      try:
        rows, odd, small = json.loads(line)
        odd = {int(row): text for row, text in odd.items()}
        rows, small = [int(row) for row in rows], [int(row) for row in small]
      except (ValueError, TypeError, AttributeError):
        continue
      self.rows.update(rows)
      self.odd.update(odd)
      self.small.update(small)
    self._path, self._images = path, images
    self._pending = Result([], {}, {}, [])
    self._flushed = time.monotonic()

  def add(self, result: Result) -> None:
    """Notes finished rows; on disk within about a second."""
    self.rows.update(result.rows)
    self.odd.update(result.odd)
    self.small.update(result.small)
    self._pending.rows.extend(result.rows)
    self._pending.odd.update(result.odd)
    self._pending.small.extend(result.small)
    if time.monotonic() - self._flushed > JOURNAL_SECONDS:
      self.flush()

  def flush(self) -> None:
    """First the pixels, then the note that they are there."""
    sync(self._images)
    rows, _, odd, small = self._pending
    with writing(self._path), open(self._path, 'a') as file:
      file.write('\n' + json.dumps([rows, odd, small]) + '\n')  # A torn line before is skipped.
      file.flush()
      os.fsync(file.fileno())
    self._pending, self._flushed = Result([], {}, {}, []), time.monotonic()


def sync(path: Path) -> None:
  """Returns when the file, or the folder's entries, are on disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


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
  Raises: InputError for a full disk.
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
  except OSError as error:
    raise disk_error(error, Path(target.path), len(entries) * target.row_bytes) from error
  return bad


def _results(run: Callable, tasks: Iterator, workers: int) -> Iterator[Result]:
  """run(task) for all tasks, in any order, a few ahead of the slowest."""
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
  pool: Executor = ProcessPoolExecutor(workers, context, _end_with_parent)
  try:
    waiting: set[Future] = set()
    for task in tasks:
      waiting.add(pool.submit(run, task))
      if len(waiting) >= 4 * workers:
        ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ready)
    while waiting:
      ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
      yield from (future.result() for future in ready)
  except BaseException:  # Nobody waits for what is begun; what no journal notes is done again.
    for child in set(multiprocessing.active_children()) - others:
      child.kill()
    raise
  finally:
    pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
  """A process whose parent was killed ends too, and signals are the parent's to answer."""
  for number in (signal.SIGINT, signal.SIGTERM):  # Which a terminal or a scheduler sends to all.
    signal.signal(number, signal.SIG_IGN)
  sentinel = multiprocessing.parent_process().sentinel

  def watch():
    multiprocessing.connection.wait([sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
