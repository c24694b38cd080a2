"""SIGINT and SIGTERM: one line and an exit code in every mode; in the training loop a question it asks.

main.py imports this first: nothing here takes time to import.
"""

import contextlib
import os
import re
import select
import signal
import sys
import threading
from traceback import walk_stack

KEEPING = ('train', 'prepare', 'sample', 'evaluate', 'reference')  # Modes that go on.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_AFTER = 0.1  # Seconds.
ANSWERED_WITHIN = 0.3  # Seconds, unless something holds up Python's handlers, as compiling does.


def answer() -> None:
  """From here on, a signal raises KeyboardInterrupt(number) or ends the process, see end."""
  sys.unraisablehook = _ignored
  for number in SIGNALS:
    signal.signal(number, _stop)
  _acknowledge()


def _acknowledge() -> None:
  """Says that a signal came where its handler of Python has to wait. Called by the main thread."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # Written to by the signal itself.

  def tell():
    while number := os.read(reader, 1):
      waits = (ANSWERED_WITHIN, 0.05)  # Again, if it was this thread that had to wait.
      if number[0] in SIGNALS and not any(select.select([reader], [], [], s)[0] for s in waits):
        name = signal.Signals(number[0]).name
        os.write(2, f'\n{name}: stopping as soon as what runs now allows it\n'.encode())

  threading.Thread(target=tell, daemon=True).start()


def _answered() -> None:
  """Called by handlers, in the main thread: nothing more has to be said."""
  writer = signal.set_wakeup_fd(-1)
  if writer >= 0:
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.write(writer, b'\0')


def end(number: int) -> None:
  """Ends at once, with one line: in an orderly exit the threads of XLA may crash.

  Exit code 75 in the KEEPING modes, 128 + number in others.
  """
  mode = (re.findall(r'-mode=(\w+)', '='.join(sys.argv)) or ['train'])[-1]
  code, advice = 128 + number, 'nothing is kept, the same command begins again'
  if mode in KEEPING:
    code, advice = 75, 'the same command goes on from what is finished'
  with contextlib.suppress(
    OSError, RuntimeError
  ):  # A pipe that nobody reads; in the midst of print.
    sys.stdout.flush()
  os.write(2, f'main.py: {signal.Signals(number).name}: {advice}\n'.encode())
  os._exit(code)


def _stop(number, frame) -> None:
  """Within an import, which may lose an exception, it ends at once."""
  _answered()
  if any(f.f_code.co_filename.startswith('<frozen importlib') for f, _ in walk_stack(frame)):
    end(number)
  raise KeyboardInterrupt(number)


def _ignored(lost) -> None:
  """Sends a signal again if its exception was raised in a callback, such as weakref's, and ignored."""
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
