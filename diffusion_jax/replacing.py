"""Files that are written whole or not at all, under names that no two processes share."""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A stream beside `path` that takes its place at the end; after an exception nothing is left.

  Raises: OSError that names `path`, also where the system or NumPy name no file, as on a full disk.
  """
  temporary = path.with_name(f'.{path.name}-{secrets.token_hex(8)}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'xb') as stream:
      yield stream
    os.replace(temporary, path)
  except OSError as error:
    number = error.errno or errno.ENOSPC  # NumPy's write that was cut short carries no number.
    raise OSError(number, os.strerror(number), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
