"""Coordinates the processes of one run, one a host; with a single process nothing waits.

All processes share a file system and make the same calls in the same order.
"""

import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import errors
from diffusion_jax.types import Array


def is_first() -> bool:
  """Returns whether this process is the one that prints, and writes what is written once."""
  return jax.process_index() == 0


def say(text: str) -> None:
  """Prints the text on the first process."""
  if is_first():
    print(text, flush=True)


def from_first(work: Callable[[], Any]) -> Any:
  """Calls work() on the first process while the others wait, and returns its result on all of them.

  work: returns a JSON value. Raises: on all processes, what work raises on the first.
  """
  if jax.process_count() == 1:
    return work()
  answer, failure = {}, None
  if is_first():
    try:
      answer = {'value': work()}
    except Exception as error:  # Any error: the others must not wait for ever.
      failure = error
      answer = {'error': type(error).__name__, 'text': str(error)}
  answer = json.loads(_broadcast(json.dumps(answer).encode()))
  if failure is not None:
    raise failure
  if 'error' in answer:
    kind = getattr(errors, answer['error'], None)
    if kind is None:
      kind, answer = errors.InputError, {'text': f'process 0: {answer["error"]}: {answer["text"]}'}
    raise _of_all(kind(answer['text']))
  return answer['value']


def _broadcast(content: bytes) -> bytes:
  """Returns the first process's `content` on all processes."""
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
  buffer = np.zeros(length, np.uint8)
  if is_first():
    buffer[:] = np.frombuffer(content, np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()


def require_shared(workdir: Path) -> None:
  """Checks that DIR is one folder for all processes: process 0 writes a file there, and all look for it.

  Raises: InputError on all of them.
  """
  if jax.process_count() == 1:
    return
  name = from_first(lambda: _token(workdir))
  seen = np.asarray(multihost_utils.process_allgather(np.bool_((workdir / name).is_file())))
  if is_first():
    (workdir / name).unlink()
  if not seen.all():
    blind = ', '.join(map(str, np.flatnonzero(~seen.reshape(-1))))
    raise _of_all(
      errors.InputError(
        f'--workdir={workdir}: not the folder of process 0 on process {blind}; all processes need one shared '
        'folder, as by NFS, Filestore or gcsfuse: docs/clusters.md'
      )
    )


def _of_all(error: errors.Stop) -> errors.Stop:
  error.on_all = True
  return error


def _token(workdir: Path) -> str:
  name = f'.shared-{secrets.token_hex(8)}'
  (workdir / name).touch()
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
