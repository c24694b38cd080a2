"""Answers SIGINT and SIGTERM with one line and an exit code in every mode; the training loop polls.

The command imports this file first, so it imports nothing slow.
"""

import contextlib
import os
import re
import select
import signal
import sys
import threading
from traceback import walk_stack

KEEPING = ('train', 'prepare', 'sample', 'evaluate', 'reference')  # Modes that resume.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_AFTER = 0.1  # Seconds.
ANSWERED_WITHIN = 0.3  # Seconds; compiling, for example, holds up Python's handlers for longer.


def answer() -> None:
  """Installs the handlers: a signal raises KeyboardInterrupt(number) or ends the process, see end."""
  sys.unraisablehook = _ignored
  for number in SIGNALS:
    signal.signal(number, _stop)
  _acknowledge()


def _acknowledge() -> None:
  """Confirms a signal whose Python handler has to wait. Called by the main thread."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Written to by the signal itself.

  def tell():
    while number := os.read(reader, 1):
      waits = (ANSWERED_WITHIN, 0.05)  # Twice, in case this thread had to wait.
      if number[0] in SIGNALS and not any(select.select([reader], [], [], s)[0] for s in waits):
        name = signal.Signals(number[0]).name
        os.write(2, f'\n{name}: stopping as soon as what runs now allows it\n'.encode())

  threading.Thread(target=tell, daemon=True).start()


def _answered() -> None:
  """Stops the confirmation of _acknowledge. Called by handlers, in the main thread."""
  writer = signal.set_wakeup_fd(-1)
  if writer >= 0:
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.write(writer, b'\0')


def end(number: int) -> None:
  """Ends the process at once with one line, because XLA's threads may crash in an orderly exit.

  The exit code is 75 in the KEEPING modes and 128 + number in others.
  """
  mode = (re.findall(r'-mode=(\w+)', '='.join(sys.argv)) or ['train'])[-1]
  code, advice = 128 + number, 'nothing was kept; the same command begins again'
  if mode in KEEPING:
    code, advice = 75, 'the same command goes on from what is finished'
  program = os.path.basename(sys.argv[0])
  with contextlib.suppress(OSError, RuntimeError):  # A closed pipe; a signal within print.
    sys.stdout.flush()
  os.write(2, f'{program}: {signal.Signals(number).name}: {advice}\n'.encode())
  os._exit(code)


def _stop(number, frame) -> None:
  """Raises KeyboardInterrupt; within an import, which may swallow it, ends the process."""
  _answered()
  if any(f.f_code.co_filename.startswith('<frozen importlib') for f, _ in walk_stack(frame)):
    end(number)
  raise KeyboardInterrupt(number)


def _ignored(lost) -> None:
  """Sends a signal again if Python ignored its exception, raised in a callback such as weakref's."""
  if lost.exc_type is KeyboardInterrupt and lost.exc_value.args:
    threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), *lost.exc_value.args)).start()
  else:
    sys.__unraisablehook__(lost)


class Interruption:
  """Context manager: the first signal sets `requested`; a second one acts as it always did."""

  signals = SIGNALS
  requested = ''

  def __enter__(self) -> 'Interruption':
    self._previous = {number: signal.signal(number, self._note) for number in self.signals}
    return self

  def __exit__(self, *unused) -> None:
    self._restore()

  def _note(self, number, frame) -> None:
    del frame
    _answered()
    self.requested = signal.Signals(number).name
    text = f'\n{self.requested}: stopping after this step, then writing a checkpoint\n'
    os.write(2, text.encode())  # print is not allowed to interrupt itself.
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
