"""A signal is answered at once, and acted on between two steps."""

import hashlib
import os
import signal
import sys
import threading
import time

import pytest

from diffusion_jax.runtime.interruption import ANSWERED_WITHIN, SIGNALS, Interruption, answer


@pytest.mark.parametrize('number', Interruption.signals)
def test_a_signal_is_acknowledged_at_once(capfd, number):
  before = signal.getsignal(number)
  with Interruption() as interruption:
    assert not interruption.requested
    signal.raise_signal(number)
    assert interruption.requested == number.name
    assert number.name in capfd.readouterr().err
    assert signal.getsignal(number) == before  # A second one acts as it always did.


def test_a_signal_is_acknowledged_while_python_is_held_up(capfd):
  """As by a compilation: no handler runs before it returns. One that runs in time says enough."""
  before = [signal.getsignal(number) for number in SIGNALS], sys.unraisablehook
  told = []

  def send():
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(300):
      if text := capfd.readouterr().err:
        return told.append(text)
      time.sleep(0.01)

  try:
    answer()
    sender = threading.Thread(target=send)
    with pytest.raises(KeyboardInterrupt):
      sender.start()
      while sender.is_alive():  # In C, which sees no signals.
        hashlib.pbkdf2_hmac('sha256', b'x', b'x', 5_000_000)
    sender.join()
    assert len(told) == 1 and 'SIGTERM: stopping' in told[0]
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGTERM)
    time.sleep(2 * ANSWERED_WITHIN)
    assert capfd.readouterr().err == ''
  finally:
    signal.set_wakeup_fd(-1)
    sys.unraisablehook = before[1]
    for number, handler in zip(SIGNALS, before[0]):
      signal.signal(number, handler)
