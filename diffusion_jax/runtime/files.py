"""Writes files whole or not at all, and turns errors of the file system into advice."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from diffusion_jax.errors import InputError

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
# Names of temporary files: those of `replacing`, and those by which the command tries to write.
TEMPORARY = re.compile(r'\..+-[0-9a-f]{16}\.tmp|\.probe-\d+')
# NumPy's message for a write that the system cut short; it carries no error number.
CUT_SHORT = re.compile(r'\d+ requested and \d+ written')
# The errors of reading JSON that someone may have sent.
NOT_JSON = (OSError, ValueError, RecursionError)
# The errors with which NumPy refuses a damaged .npz file.
UNREADABLE = (
  *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RuntimeError, MemoryError),
  *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError),
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """Yields a stream to a temporary file beside `path` that replaces `path` at the end.

  No two processes share the temporary name. After an exception the file is removed.
  Raises: OSError that names `path`, even where the system or NumPy name no file, as on a full disk.
  """
  temporary = path.with_name(f'.{path.name}-{secrets.token_hex(8)}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'xb') as stream:
      yield stream
    os.replace(temporary, path)
  except OSError as error:
    number = error.errno or errno.ENOSPC  # A write of NumPy that was cut short carries no number.
    raise OSError(number, os.strerror(number), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
  """Removes the temporary files that killed commands left in a folder, which has no other writer now."""
  for path in folder.glob('.*'):
    if TEMPORARY.fullmatch(path.name):
      path.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
  """Writes the file whole or not at all, and to the disk itself. Raises: OSError that names path."""
  with replacing(path) as stream:
    stream.write(content.encode() if isinstance(content, str) else content)
    stream.flush()
    os.fsync(stream.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes indented JSON as `write` does."""
  write(path, json.dumps(content, indent=2) + '\n')


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """Adds an entry 'digest' of all others to a JSON object, or replaces it."""
  inner = {key: value for key, value in content.items() if key != 'digest'}
  text = json.dumps(inner, sort_keys=True)
  return {**inner, 'digest': hashlib.sha256(text.encode()).hexdigest()}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """Takes the digest out again; what has none, from an older version, stays as it is.

  Raises: ValueError for another digest.
  """
  if 'digest' in content and sealed(content)['digest'] != content['digest']:
    raise ValueError('its digest is that of another content')
  return {key: value for key, value in content.items() if key != 'digest'}


def write_npz(path: Path, **arrays: Any) -> None:
  """Writes the arrays whole or not at all. Raises: OSError that names path."""
  with replacing(path) as stream:
    np.savez(stream, **arrays)


def write_png(path: Path, image: np.ndarray) -> None:
  """Writes an image (H, W) or (H, W, 1 or 3) uint8 whole or not at all. Raises: OSError that names path."""
  pixels = image[..., 0] if image.shape[2:] == (1,) else image
  with replacing(path) as stream:
    Image.fromarray(pixels).save(stream, format='PNG')


def sync(path: Path) -> None:
  """Flushes the file, or the entries of the folder, to disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
  """Yields as os.walk does, following symbolic links and entering each folder once."""
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen:
      folders.clear()
    else:
      seen.add(real)
      yield Path(folder), folders, names


def reserved_array(path: Path, shape: tuple[int, ...], dtype: type, notes: str) -> np.memmap:
  """Opens an existing .npy file whose rows the files `notes` count, or makes one with its space reserved.

  notes: a pattern, as 'journal*', for files beside it.
  """
  with contextlib.suppress(ValueError, OSError):
    there = np.lib.format.open_memmap(path, mode='r+')
    size = there.offset + there.nbytes
    if (there.shape, there.dtype, path.stat().st_size) == (shape, dtype, size):
      return there
  remove(path.parent, notes)  # They count the rows of another file.
  with naming(path):
    array = np.lib.format.open_memmap(path, mode='w+', dtype=dtype, shape=shape)
    if hasattr(os, 'posix_fallocate'):
      with open(path, 'r+b') as file:
        os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
  return array


@contextlib.contextmanager
def advising(work: Path, needed: int) -> Iterator[None]:
  """Raises an InputError with advice where one of the `needed` bytes cannot be written in the folder `work`."""
  try:
    yield
  except OSError as error:
    number = error.errno or errno.ENOSPC
    named = OSError(number, os.strerror(number), str(error.filename or work))
    size = f'; {needed:,} bytes are needed' if ADVICE.get(number) == ROOM else ''
    raise InputError(f'config.data.dir: {message(named)}{size}') from error


def publish(work: Path, target: Path, notes: str) -> None:
  """Renames a finished folder to its name and removes the `notes` (a pattern) of what was done."""
  os.replace(work, target)
  sync(target.parent)
  remove(target, notes)


def remove(folder: Path, pattern: str) -> None:
  """Removes the files of the folder that match the pattern."""
  for path in folder.glob(pattern):
    path.unlink(missing_ok=True)


def number_in(text: str) -> int | None:
  """Returns the errno of ADVICE whose text occurs in the error of a library."""
  return next((number for number in ADVICE if os.strerror(number) in text), None)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
  """Raises an OSError that names path for one that names no file, or an error that quotes one."""
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
  """Says what happened to which file and what to do; returns None for errors that are not about files.

  Errors of a network, for instance, have neither a file name nor a number of ADVICE.
  """
  number = errno.ENOSPC if CUT_SHORT.search(str(error)) else error.errno
  if number is None or (number not in ADVICE and error.filename is None):
    return None
  what = error.filename or 'a file cannot be written or read'
  advice = f'; {ADVICE[number]}' if number in ADVICE else ''
  return f'{what}: {os.strerror(number)}{advice}'
