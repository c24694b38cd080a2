"""Lets all processes of a run end together after a signal to one of them.

A process that may begin no more steps than another waits for ever inside a collective, so all have to stop
after the same one, or between the same two batches of a metric. They agree through the coordinator's key-value
store, by threads, since a main thread may wait for the devices: each lets nothing begin and tells how far it
is; then all go on to the farthest.
"""

import atexit
import contextlib
import threading
import time
from typing import Any

from diffusion_jax.runtime import interruption

REQUESTED, NOW = 'stop/requested', 'stop/now'
ASKED_EVERY = 1.0  # Seconds.
ANSWERED_WITHIN = 10.0  # Seconds: the threads of all processes are free.
NONE, ENDED = -1, -2  # Instead of how far: before the first, or after the training.


class Peers:
  """The other processes, by the coordinator's client (jaxlib's DistributedRuntimeClient)."""

  def __init__(self, client: Any, number: int, count: int):
    self._client, self._number, self._count = client, number, count
    self._ending = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    atexit.register(self._close)  # Python may not end while a thread is inside the client.

  def request(self, number: int) -> None:
    """Asks all processes to end, for signal `number`."""
    with contextlib.suppress(Exception):  # Another process was quicker.
      self._client.key_value_set(REQUESTED, str(number))

  def end_now(self, number: int) -> None:
    """Lets the others end at once, because this process does."""
    with contextlib.suppress(Exception):
      self._client.key_value_set(NOW, str(number))

  def _watch(self) -> None:
    agreed = False
    while not self._ending.wait(ASKED_EVERY):
      if number := self._find(NOW):
        interruption.end(number)
      if not agreed and (number := self._find(REQUESTED)):
        self._agree(number)
        agreed = True

  def _find(self, key: str) -> int | None:
    """Returns the number that a process has set; None if none has."""
    with contextlib.suppress(Exception):  # For a missing key, or a dead coordinator.
      return int(self._client.key_value_try_get(key))
    return None

  def _close(self) -> None:
    self._ending.set()
    self._thread.join()

  def _agree(self, number: int) -> None:
    training, passed = interruption.current(), NONE
    if training:
      far = training.freeze()
      passed = ENDED if training.ended else NONE if far is None else far
    try:
      self._client.key_value_set(f'stop/passed/{self._number}', str(passed))
      found = [int(self._hear(f'stop/passed/{other}')) for other in range(self._count)]
    except Exception:  # A process is gone, so no step can end.
      found = [NONE]
    if NONE in found:  # No step has ended anywhere: nothing is unsaved.
      self._leave(number)
    elif training and not training.ended:
      training.agree(max(found), number)
      if not self._number:
        text = (
          f'{training.requested}: all processes stop after the same step, then write a checkpoint'
        )
        interruption.say(f'\n{text}')

  def _hear(self, key: str) -> str:
    return self._client.blocking_key_value_get(key, int(1000 * ANSWERED_WITHIN))

  def _leave(self, number: int) -> None:
    """Ends this process; the first one, which holds the keys, goes last."""
    with contextlib.suppress(Exception):
      self._client.key_value_set(f'stop/left/{self._number}', '1')
      if not self._number:
        for other in range(1, self._count):
          self._hear(f'stop/left/{other}')
        time.sleep(0.5)
    interruption.end(number)
