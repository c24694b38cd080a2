"""SIGINT and SIGTERM: one line and an exit code in every mode; in the training loop a question it asks.

main.py imports this first: nothing here takes time to import.
"""

import contextlib
import os
import re
import signal
import sys
import threading
from traceback import walk_stack

KEEPING = ('train', 'prepare', 'sample', 'evaluate', 'reference')  # Modes that go on.
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_AFTER = 0.1  # Seconds.


def answer() -> None:
  """From here on, a signal raises KeyboardInterrupt(number) or ends the process, see end."""
  sys.unraisablehook = _ignored
  for number in SIGNALS:
    signal.signal(number, _stop)


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
    self.requested = signal.Signals(number).name
    text = f'\n{self.requested}: stopping after this step, then writing a checkpoint\n'
    os.write(2, text.encode())  # print is not allowed to interrupt itself.
    self._restore()

  def _restore(self) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)
