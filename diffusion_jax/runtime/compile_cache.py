"""Where compiled programs are kept from one command to the next. Imports nothing heavy."""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
LIMIT = 4 * 2**30  # Bytes; beyond, programs that were not used for the longest go.


def use() -> None:
  """Lets JAX keep compiled programs in the user's cache folder; call it before JAX is imported.

  A folder in JAX_COMPILATION_CACHE_DIR goes first, and JAX_ENABLE_COMPILATION_CACHE=0 keeps none. Where no
  folder can be made, every command compiles anew.
  """
  if VARIABLE in os.environ:
    return
  folder = user_folder() / 'diffusion_jax' / f'xla-{machine()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # No home, or one that cannot be written.
    return
  os.environ[VARIABLE] = str(folder)
  with contextlib.suppress(OSError):  # Another command may be deleting the same files.
    shrink(folder, LIMIT)


def user_folder() -> Path:
  """Where programs of this user keep what can be made again."""
  return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')


def machine() -> str:
  """Eight hex digits of the instructions that this host's CPU has: a program for others may end in SIGILL."""
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  flags = next((line for line in lines if line.startswith(('flags', 'Features'))), '')
  return hashlib.sha256(f'{platform.machine()} {flags}'.encode()).hexdigest()[:8]


def shrink(folder: Path, limit: int) -> None:
  """Deletes the files that were read longest ago, until `limit` bytes are left."""
  found = [(path, path.stat()) for path in folder.iterdir() if path.is_file()]
  total = sum(stat.st_size for _, stat in found)
  for path, stat in sorted(found, key=lambda item: max(item[1].st_atime, item[1].st_mtime)):
    if total <= limit:
      break
    path.unlink(missing_ok=True)
    total -= stat.st_size
