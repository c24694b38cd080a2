"""Writing small files whole or not at all, and what to do where nothing can be written."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_jax.replacing import replacing

ROOM = 'make room and repeat the command, which goes on from what is finished'
ADVICE = {
  errno.ENOSPC: ROOM,
  errno.EDQUOT: ROOM,
  errno.EFBIG: 'raise the limit on the size of files (ulimit -f) and repeat the command',
  errno.EROFS: 'give a folder on a file system that can be written (--workdir, --config.data.dir)',
  errno.EACCES: 'give a folder that you may read and write, or change its permissions',
  errno.EPERM: 'give a folder that you may read and write, or change its permissions',
  errno.ENAMETOOLONG: 'give a shorter path or name',
  errno.EMFILE: 'raise the limit on open files (ulimit -n) and repeat the command',
  errno.EIO: 'check the disk, then repeat the command',
  errno.ESTALE: 'check the network file system, then repeat the command',
}
# NumPy's own words for a write that the system cut short; they carry no number.
CUT_SHORT = re.compile(r'\d+ requested and \d+ written')


def write_text(path: Path, text: str) -> None:
  """Writes the file whole or not at all, and to the disk itself. Raises: OSError that names path."""
  with replacing(path) as stream:
    stream.write(text.encode())
    stream.flush()
    os.fsync(stream.fileno())


def number_in(text: str) -> int | None:
  """The errno of ADVICE whose words a library of another language has put into its own error."""
  return next((number for number in ADVICE if os.strerror(number) in text), None)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Raises: OSError that names path, for one that names no file, or an error that quotes one's words."""
  try:
    yield
  except Exception as error:
    number, cause = None, error
    while number is None and cause:
      number = cause.errno if isinstance(cause, OSError) else number_in(str(cause))
      cause = cause.__cause__
    if number is None:
      raise
    raise OSError(number, os.strerror(number), str(path)) from error


def message(error: OSError) -> str | None:
  """What happened, to which file if the system says so, and what to do; None for other errors.

  A network's errors, for instance, are not about files: neither a name nor a number of ADVICE.
  """
  number = errno.ENOSPC if CUT_SHORT.search(str(error)) else error.errno
  if number is None or (number not in ADVICE and error.filename is None):
    return None
  happened = os.strerror(number)
  advice = f'; {ADVICE[number]}' if number in ADVICE else ''
  if error.filename is None:
    return f'a file cannot be written or read: {happened}{advice}'
  return f'{error.filename}: {happened}{advice}'
