"""Answers SIGINT and SIGTERM with one line and an exit code in every mode, whatever the main thread does.

Python runs signal handlers between two of its own instructions, so never while XLA compiles. A thread therefore
reads the signals too. Outside a training, the handler raises KeyboardInterrupt, and the thread ends the process
where that does not. A training ends between two steps: Interruption. A second signal ends it at once.

The command imports this file first, so it imports nothing slow.
"""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from traceback import walk_stack
from typing import Any

KEEPING = ('train', 'prepare', 'sample', 'evaluate', 'reference', 'sweep')  # Modes that resume.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DRAINED = 0  # Stands for no signal.
ENDS_WITHIN = 5.0  # Seconds, by KeyboardInterrupt; then by the thread.
BROKEN_WITHIN = 10.0  # Seconds to leave what may be broken off; then the thread saves.


class Broken(BaseException):
  """Leaves what may be broken off. A BaseException, so that nothing handles it as an error."""


class _Watch:
  """The thread that reads signals: one, since they belong to the process."""

  def __init__(self):
    self.interruption: Interruption | None = None  # Of the training that runs.
    self.peers: Any = None  # peers.Peers, if this process has joined others.
    self._seen = 0
    self._is_drained = threading.Event()
    reader, self._writer = os.pipe()
    os.set_blocking(self._writer, False)
    self._previous = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
    threading.Thread(target=self._read, args=(reader,), daemon=True).start()

  def _read(self, reader: int) -> None:
    while data := os.read(reader, 1):
      if data[0] in SIGNALS:
        self._seen += 1
        self._act(data[0])
      elif data[0] == DRAINED:
        self._is_drained.set()
    os.close(reader)

  def drain(self) -> None:
    """Waits until the thread has acted on the signals that have arrived."""
    self._is_drained.clear()
    os.write(self._writer, bytes([DRAINED]))
    self._is_drained.wait(1)

  def _act(self, number: int) -> None:
    if self._seen > 1:
      if self.peers:
        self.peers.end_now(number)
      end(number)
    elif self.peers:
      self.peers.request(number)
    elif self.interruption:
      self.interruption.request(number)
    else:
      timer = threading.Timer(ENDS_WITHIN, end, (number,))
      timer.daemon = True
      timer.start()

  def close(self) -> None:
    """Leaves signals to who had them before."""
    signal.set_wakeup_fd(self._previous)
    os.close(self._writer)


_watch: _Watch | None = None  # Signals belong to the process, and so does this.


def answer() -> None:
  """Installs handlers and thread for as long as the process lives."""
  global _watch
  sys.unraisablehook = _ignored
  for number in SIGNALS:
    signal.signal(number, _stop)
  _watch = _Watch()


def share(peers: Any) -> None:
  """Lets all processes of a run end together. peers: peers.Peers, whose signals are answered from now on."""
  if _watch:
    _watch.peers = peers


def current() -> 'Interruption | None':
  """Returns that of the training that runs, or ran last."""
  return _watch.interruption if _watch else None


def end(number: int) -> None:
  """Ends the process at once with one line, because XLA's threads may crash in an orderly exit.

  The exit code is 75 in the KEEPING modes and 128 + number in others.
  """
  mode = (re.findall(r'-mode=(\w+)', '='.join(sys.argv)) or ['train'])[-1]
  code, advice = 128 + number, 'nothing was kept; the same command begins again'
  if mode in KEEPING:
    code, advice = 75, 'the same command goes on from what is finished'
  program = os.path.basename(sys.argv[0])
  with contextlib.suppress(OSError, RuntimeError, ValueError):  # A closed pipe; within print.
    sys.stdout.flush()
  say(f'{program}: {signal.Signals(number).name}: {advice}')
  os._exit(code)


def say(line: str) -> None:
  """Writes to stderr from any thread; print is not allowed to interrupt itself."""
  with contextlib.suppress(OSError):
    os.write(2, f'{line}\n'.encode())


def _stop(number, frame) -> None:
  """Raises KeyboardInterrupt; within an import, which may swallow it, ends the process."""
  if _watch and _watch.peers:
    return  # The processes end together.
  if any(f.f_code.co_filename.startswith('<frozen importlib') for f, _ in walk_stack(frame)):
    end(number)
  raise KeyboardInterrupt(number)


def _ignored(lost) -> None:
  """Ends the process if Python ignored a KeyboardInterrupt, raised in a callback such as weakref's."""
  if lost.exc_type is KeyboardInterrupt and lost.exc_value.args:
    end(*lost.exc_value.args)
  sys.__unraisablehook__(lost)


class Interruption:
  """Context manager: a signal ends a training between two steps, on all processes after the same one.

  `requested`: the name of the signal. The loop asks `may_begin` before each step. What may take long and
  changes nothing, as a preview, runs inside `breakable`.
  """

  signals = SIGNALS

  def __init__(self):
    self.requested = ''
    self.ended = False
    self._passed = 0  # Steps that began, and points: the same numbers on all processes.
    self._last: int | None = None  # The last of them that may be passed; None: any.
    self._begun = False  # Whether a step has.
    self._frozen = False  # Whether none may be passed until the processes have agreed.
    self._save: Callable[[], None] | None = None  # Inside breakable.
    self._taken = False  # Whether the thread writes the checkpoint.
    self._changed = threading.Condition()

  def __enter__(self) -> 'Interruption':
    global _watch
    self._own = _Watch() if _watch is None else None  # A notebook, or a test.
    _watch = _watch or self._own
    _watch.interruption, _watch._seen = self, 0
    self._previous = {number: signal.signal(number, self._note) for number in self.signals}
    return self

  def __exit__(self, *unused) -> None:
    global _watch
    _watch.drain()  # They are of this training.
    self.ended = True
    for number, handler in self._previous.items():
      signal.signal(number, handler)
    if not _watch.peers:
      _watch.interruption = None
    if self._own:
      self._own.close()
      _watch = None

  def may_begin(self) -> bool:
    """Returns whether a step may begin, and notes that it does; waits while processes agree."""
    with self._changed:
      passes = self._pass()
      self._begun = self._begun or passes
      return passes

  def point(self) -> None:
    """Stands between two batches of what is breakable: there several processes break it off together.

    Raises: Broken.
    """
    with self._changed:
      if _watch and _watch.peers and not self._pass():
        raise Broken

  def _pass(self) -> bool:
    self._changed.wait_for(lambda: not self._frozen)
    if self._last is not None and self._passed >= self._last:
      return False
    self._passed += 1
    return True

  @contextlib.contextmanager
  def breakable(self, save: Callable[[], None]) -> Iterator[None]:
    """Runs what a signal may break off by Broken: anywhere with a single process, with several at a `point`.

    save: writes a checkpoint; the thread calls it where Broken cannot be raised, as in a compilation.
    Raises: Broken.
    """
    alone = not (_watch and _watch.peers)
    with self._changed:
      if self.requested if alone else not self._pass():
        raise Broken
      self._save = save if alone else None
    try:
      yield
    finally:
      with self._changed:
        self._save = None
        self._changed.notify_all()
        self._changed.wait_for(lambda: not self._taken)  # Then the process ends.

  def request(self, number: int) -> None:
    """Asks for the end, as the thread does on a signal with a single process."""
    with self._changed:
      if not self._begun:  # Nothing is unsaved.
        end(number)
      self._end_after(self._passed, number)
    say(f'\n{self.requested}: stopping after this step, then writing a checkpoint')
    threading.Thread(target=self._rescue, args=(number,), daemon=True).start()

  def _rescue(self, number: int) -> None:
    """Writes the checkpoint if the main thread cannot."""
    with self._changed:
      if self._changed.wait_for(lambda: self._save is None, BROKEN_WITHIN):
        return  # It ended, or Broken was raised.
      save, self._taken = self._save, True
    say(f'{self.requested}: writing a checkpoint now, because what runs does not end')
    try:
      save()
    except Exception as error:  # As on a full disk: the main thread tries again when it can.
      say(f'{self.requested}: {error}')
      with self._changed:
        self._taken = False
        self._changed.notify_all()
    else:
      end(number)

  def freeze(self) -> int | None:
    """Lets nothing pass before `agree`. Returns: how much has passed; None: no step has begun."""
    with self._changed:
      self._frozen = True
      return self._passed if self._begun else None

  def agree(self, passed: int, number: int) -> None:
    """Ends the training where so much has passed, as all processes do."""
    with self._changed:
      self._frozen = False
      self._end_after(passed, number)

  def _end_after(self, passed: int, number: int) -> None:
    self._last, self.requested = passed, signal.Signals(number).name
    self._changed.notify_all()

  def _note(self, number, frame) -> None:
    """The handler of a single process: ends what may be broken off. The thread does the rest."""
    del frame
    if _watch.peers:
      return
    with self._changed:
      self._changed.wait_for(lambda: not self._taken)
      if not self._begun:
        return
      breaks, self._save = self._save is not None, None
      self._end_after(self._passed, number)
    if breaks:
      raise Broken
