"""SIGINT and SIGTERM as a question that the training loop asks, instead of an exception anywhere."""

import os
import signal


class Interruption:
  """Context manager: the first signal sets `requested`; a second one acts as it always did."""

  signals = (signal.SIGINT, signal.SIGTERM)
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
