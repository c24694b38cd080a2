"""Threads that take themselves for the processes of one run, for tests of what processes do together."""

import ast
import contextlib
import threading
import time
from types import SimpleNamespace
from unittest import mock

import jax

from diffusion_jax.runtime import hosts

TIMEOUT = 60  # Seconds.


class Store:
  """The coordinator's key-value store, in memory."""

  def __init__(self):
    self._values, self._changed = {}, threading.Condition()

  def key_value_set(self, key, value):
    with self._changed:
      assert key not in self._values
      self._values[key] = value
      self._changed.notify_all()

  def key_value_increment(self, key, by):
    with self._changed:
      self._values[key] = self._values.get(key, 0) + by
      return self._values[key]

  def key_value_dir_get(self, key):
    with self._changed:
      return [(name, self._values[name]) for name in self._values if name.startswith(f'{key}/')]

  def blocking_key_value_get(self, key, milliseconds):
    with self._changed:
      if not self._changed.wait_for(lambda: key in self._values, milliseconds / 1000):
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')
      return self._values[key]


def _one_at_a_time(function):
  lock = threading.Lock()

  def locked(*arguments, **options):
    with lock:
      return function(*arguments, **options)

  return locked


def run(count, work):
  """Calls work(number) on `count` processes at once. Returns: what each returned, or the error it raised."""
  place, found = threading.local(), [None] * count
  store = SimpleNamespace(client=Store())

  def process(number):
    place.number = number
    try:
      found[number] = work(number)
    except Exception as error:
      found[number] = error

  with contextlib.ExitStack() as stack:
    # np.load parses with it, and in Python 3.11 threads that do so at once disturb each other.
    stack.enter_context(mock.patch.object(ast, 'parse', _one_at_a_time(ast.parse)))
    stack.enter_context(mock.patch.object(hosts, 'global_state', store))
    stack.enter_context(mock.patch.object(hosts, 'HEARD_EVERY', 0.05))
    stack.enter_context(mock.patch.object(hosts, 'CHECKED_EVERY', 0.0))
    stack.enter_context(mock.patch.object(jax, 'process_count', lambda: count))
    stack.enter_context(
      mock.patch.object(jax, 'process_index', lambda: getattr(place, 'number', 0))
    )
    threads = [threading.Thread(target=process, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
      thread.start()
    ends = time.monotonic() + TIMEOUT
    for thread in threads:
      thread.join(max(0, ends - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), 'processes wait for each other'
  return found
