"""Coordinates the processes of one run, one a host; with a single process nothing waits.

All processes share a file system and make the same calls in the same order. What they tell each other goes
through the coordinator's key-value store, so nobody waits inside a collective while another one works.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # The only way to the key-value store.

from diffusion_jax import errors
from diffusion_jax.runtime import files
from diffusion_jax.types import Array

HEARD_EVERY = 0.5  # Seconds: a signal waits no longer.
CHECKED_EVERY = 0.5  # Seconds between looks for processes that failed.
LEFT = 'hosts/left'  # Keys of processes that failed by themselves.
SHARED = 'all processes need one shared folder, as by NFS, Filestore or gcsfuse: docs/clusters.md'


def number() -> int:
  """Returns the number of this process, from 0."""
  return jax.process_index()


def count() -> int:
  """Returns the number of processes."""
  return jax.process_count()


def is_first() -> bool:
  """Returns whether this process is the one that prints, and writes what is written once."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints the text on the first process."""
  if is_first():
    print(text, flush=True)


class _Call:
  """One call that all processes make: what each of them tells the others."""

  def __init__(self):
    self._client = global_state.client
    number = self._client.key_value_increment(f'hosts/calls/{jax.process_index()}', 1)
    self._key, self._checked = f'hosts/{number}', time.monotonic()

  def tell(self, value: Any) -> None:
    """Gives the others this process's JSON value."""
    self._client.key_value_set(f'{self._key}/{jax.process_index()}', json.dumps(value))

  def hear(self, number: int) -> Any:
    """Waits for the value of process `number`."""
    while True:
      try:
        key = f'{self._key}/{number}'
        return json.loads(self._client.blocking_key_value_get(key, int(1000 * HEARD_EVERY)))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
      self._require_none_left()

  def _require_none_left(self) -> None:
    """Raises: the error of a process that failed by itself, and makes no more calls."""
    left = {
      int(key.rpartition('/')[2]): value for key, value in self._client.key_value_dir_get(LEFT)
    }
    if left:
      number = min(left)
      raise _error(json.loads(left[number]), number)

  def hear_all(self) -> list[Any]:
    """Waits for the values of all processes."""
    return [self.hear(number) for number in range(jax.process_count())]

  def attempt(self, work: Callable[[], Any]) -> tuple[dict[str, Any], Exception | None]:
    """Calls work(). Returns: what to tell the others, and what it raised; of others' failures neither."""
    try:
      return {'value': work()}, None
    except _Ended:
      return {}, None
    except Exception as error:  # Any error: the others must not wait for ever.
      self._client.key_value_set(f'{self._key}/failed/{jax.process_index()}', '')
      return _outcome(error), error

  def check(self) -> None:
    """Raises: _Ended soon after another process has failed."""
    if time.monotonic() - self._checked > CHECKED_EVERY:
      self._checked = time.monotonic()
      if self._client.key_value_dir_get(f'{self._key}/failed'):
        raise _Ended


class _Ended(Exception):
  """Ends the work of this process because another one has failed."""


@contextlib.contextmanager
def leaving() -> Iterator[None]:
  """Lets the processes that wait for this one raise its error too, unless all have it already."""
  try:
    yield
  except Exception as error:
    joined = global_state.client is not None and jax.process_count() > 1
    if joined and not getattr(error, 'on_all', False):
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # The coordinator is gone.
        own = json.dumps(_outcome(error))
        global_state.client.key_value_set(f'{LEFT}/{jax.process_index()}', own)
    raise


def _outcome(error: Exception) -> dict[str, str]:
  """Describes an error to other processes."""
  kind = type(error).__name__
  text = files.message(error) if isinstance(error, OSError) else None
  if text is None and not hasattr(errors, kind):
    text = f'{kind}: {error}'
  return {'error': kind, 'text': text or str(error)}


def _error(outcome: Mapping[str, str], number: int) -> errors.Stop:
  """Makes the error that another process, `number`, has described."""
  kind, text = outcome['error'], outcome['text']
  is_named = number == 0 and hasattr(errors, kind)
  text = text if is_named else f'process {number}: {text}'
  return of_all(getattr(errors, kind, errors.InputError)(text))


def from_first(work: Callable[[], Any]) -> Any:
  """Calls work() on the first process while the others wait, and returns its result on all of them.

  work: returns a JSON value. Raises: on all processes, what work raises on the first.
  """
  if jax.process_count() == 1:
    return work()
  call, failure = _Call(), None
  if is_first():
    outcome, failure = call.attempt(work)
    call.tell(outcome)
  return _values([call.hear(0)], failure)[0]


def gather(value: Any) -> list[Any]:
  """Returns the JSON values of all processes, in their order, on all of them."""
  return together(lambda check: value)


def together(work: Callable[[Callable[[], None]], Any]) -> list[Any]:
  """Calls work(check) on every process, and returns the results of all, in their order, on all of them.

  work: returns a JSON value; where it takes long, calls check() often, which ends it when another process
  has failed. Raises: on all processes, what work raises on the first one that fails.
  """
  if jax.process_count() == 1:
    return [work(lambda: None)]
  call = _Call()
  outcome, failure = call.attempt(lambda: work(call.check))
  call.tell(outcome)
  return _values(call.hear_all(), failure)


def on_all(work: Callable[[], Any]) -> Any:
  """Calls work() on every process, and returns its own result on each.

  work: makes no call that processes make together. Raises: as together.
  """
  results = []
  together(lambda check: results.append(work()))
  return results[0]


def _values(outcomes: list[dict[str, Any]], failure: Exception | None) -> list[Any]:
  """Returns the values of all. Raises: the failure of the first process that has one."""
  failed = [number for number, outcome in enumerate(outcomes) if 'error' in outcome]
  if not failed:
    return [outcome['value'] for outcome in outcomes]
  number = failed[0]
  if number == jax.process_index():
    raise of_all(failure) if isinstance(failure, errors.Stop) else failure
  raise _error(outcomes[number], number)


def apart(folder: Path) -> list[int]:
  """Lists the processes that see another `folder` than process 0, which writes a file there for a moment."""
  if jax.process_count() == 1:
    return []
  token = from_first(lambda: _token(folder))
  seen = gather((folder / token).is_file())
  if is_first():
    (folder / token).unlink()
  return [number for number, sees in enumerate(seen) if not sees]


def require_shared(folder: Path, name: str = '--workdir', advice: str = SHARED) -> None:
  """Checks that all processes see one folder. name: what gives it. Raises: InputError on all of them."""
  others = ', '.join(map(str, apart(folder)))
  if others:
    message = f'{name}={folder}: not the folder of process 0 on process {others}; {advice}'
    raise of_all(errors.InputError(message))


def of_all(error: errors.Stop) -> errors.Stop:
  """Marks an error that every process raises: the first one alone reports it."""
  error.on_all = True
  return error


def _token(folder: Path) -> str:
  name = f'.shared-{secrets.token_hex(8)}'
  (folder / name).touch()
  return name


def own_rows(x: Array) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows of an array, sharded along its first axis, that this process has to write.

  Every row belongs to one process: the first of those that hold it (devices may share a tensor).
  Returns: row numbers (n,), ascending, and the rows (n, ...). Nothing moves between hosts.
  """
  owners: dict[int, int] = {}
  for device, index in x.sharding.devices_indices_map(x.shape).items():
    start = index[0].start or 0
    owners[start] = min(owners.get(start, device.process_index), device.process_index)
  here = jax.process_index()
  shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  starts = sorted(start for start in shards if owners[start] == here)
  rows = [np.arange(start, start + len(shards[start])) for start in starts]
  values = jax.device_get([shards[start] for start in starts])
  if not starts:
    return np.zeros(0, int), np.zeros((0, *x.shape[1:]), x.dtype)
  return np.concatenate(rows), np.concatenate(values)
