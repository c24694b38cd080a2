"""One writer: a lease file says which command writes to a place, and is renewed while it lives.

Clocks of hosts are never compared: whoever waits watches whether the file changes. A lease that does not
change for STALE_AFTER is that of a command that was killed, or cut off from the storage.
"""

import contextlib
import datetime
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import files, hosts

RENEWED_EVERY = 10.0  # Seconds.
STALE_AFTER = 60.0  # Seconds.
POLLED_EVERY = 0.5  # Seconds.
LOST = 75  # Exit code: another command writes there now, and the same command may go on after it.


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
  """Holds the lease of `path` for all processes of this run, which make this call together.

  what: 'training in runs/dit', for the message. Waits while another command's lease may be stale, and
  goes on at once where its holder is a dead process of this host.
  Raises: InputError that says who holds it.
  """
  lease = hosts.from_first(lambda: acquire(path, what))
  if not hosts.is_first():
    yield
    return
  ended = threading.Event()
  renewing = threading.Thread(target=_renew, args=(path, lease, ended), daemon=True)
  renewing.start()
  try:
    yield
  finally:
    ended.set()
    renewing.join()
    if _owner(_read(path)) == _owner(lease):
      path.unlink(missing_ok=True)


def acquire(path: Path, what: str) -> dict[str, Any]:
  """Writes the lease and returns it. Raises: InputError if another command renews its own there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  lease = {
    'host': socket.gethostname(),
    'process': os.getpid(),
    'started': _started(os.getpid()),
    'since': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
    'token': secrets.token_hex(8),
    'renewed': 0,
  }
  waited_for = None
  while not _create(path, lease):
    found = _read(path)
    if found is None:
      continue
    if _is_dead(found) or found == waited_for:
      _remove(path, found)
      continue
    waited_for = _watched(path, found)
    if waited_for not in (None, found):
      raise InputError(
        f'{what}: another command does that already: {path} is held by process {waited_for.get("process")} '
        f'of host {waited_for.get("host")} since {waited_for.get("since")}; wait for it, or stop it'
      )
  return lease


def _watched(path: Path, found: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the lease as it is once it changes, or `found` if it does not within STALE_AFTER."""
  ends = time.monotonic() + STALE_AFTER
  print(
    f'{path}: held by process {found.get("process")} of host {found.get("host")}; waiting up to '
    f'{STALE_AFTER:.0f} s to see whether it still runs',
    flush=True,
  )
  while time.monotonic() < ends:
    time.sleep(POLLED_EVERY)
    now = _read(path)
    if now != found:
      return now
  return dict(found)


def _create(path: Path, lease: Mapping[str, Any]) -> bool:
  """Writes the file unless it exists."""
  try:
    with open(path, 'x') as file:
      json.dump(lease, file)
  except FileExistsError:
    return False
  return True


def _read(path: Path) -> dict[str, Any] | None:
  """Returns the lease; {} while it is being written, None if there is none."""
  try:
    found = json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except files.NOT_JSON:
    return {}
  return found if isinstance(found, dict) else {}


def _remove(path: Path, found: Mapping[str, Any]) -> None:
  """Removes the lease if it still is `found`."""
  aside = path.with_name(f'{path.name}-{secrets.token_hex(8)}')
  with contextlib.suppress(FileNotFoundError):
    os.replace(path, aside)
    if _read(aside) != found:  # Someone else was quicker, and this is theirs.
      os.replace(aside, path)
    aside.unlink(missing_ok=True)


def _owner(lease: Mapping[str, Any] | None) -> Any:
  return lease.get('token') if lease else None


def _is_dead(lease: Mapping[str, Any]) -> bool:
  """Returns whether the holder is a process of this host that no longer runs."""
  if lease.get('host') != socket.gethostname() or not isinstance(lease.get('process'), int):
    return False
  return _started(lease['process']) != lease.get('started')


def _started(process: int) -> str | None:
  """Returns what tells a process from a later one of the same number; None if it does not run."""
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return None
  except PermissionError:
    pass  # It runs, as another user.
  try:
    return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]
  except (OSError, IndexError):
    return ''  # No /proc here: the number has to do.


def _renew(path: Path, lease: dict[str, Any], ended: threading.Event) -> None:
  """Counts up in the file until `ended`. Ends the process if the lease is another's by now."""
  while not ended.wait(RENEWED_EVERY):
    found = _read(path)
    if ended.is_set():
      return
    if found is not None and found != {} and _owner(found) != _owner(lease):
      text = (
        f'\n{path}: taken over by process {found.get("process")} of host {found.get("host")} after this one '
        f'did not renew it for {STALE_AFTER:.0f} s; stopping\n'
      )
      os.write(2, text.encode())
      os._exit(LOST)
    lease['renewed'] += 1
    with contextlib.suppress(OSError):  # On a full disk, for example, a later renewal may succeed.
      files.write_json(path, lease)
