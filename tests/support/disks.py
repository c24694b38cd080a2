"""A small disk that fills up: a tmpfs where mounting is permitted, and injected errors anywhere."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

SIZE = 64 * 2**20
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Tmpfs:
  """A file system of SIZE bytes of its own."""

  def __init__(self, path: Path):
    self.path = path
    path.mkdir()
    mounted = subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'none', str(path)],
      capture_output=True,
      check=False,
    )
    if mounted.returncode:
      raise PermissionError(mounted.stderr)

  def fill(self, left: int = 0) -> None:
    """Leaves at most `left` bytes free."""
    disk = os.statvfs(self.path)
    with contextlib.suppress(OSError), open(self.path / 'filler', 'wb', buffering=0) as file:
      os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - left))

  def make_room(self) -> None:
    (self.path / 'filler').unlink(missing_ok=True)

  def protect(self, on: bool = True) -> None:
    """Makes it read-only, or no longer."""
    self._mount(f'remount,{"ro" if on else "rw"}')

  def _mount(self, options):
    subprocess.run(['mount', '-o', options, str(self.path)], check=True)

  def close(self) -> None:
    subprocess.run(['umount', '-l', str(self.path)], check=True)


class Injected:
  """A folder where no folder can be made or file opened for writing while it is full, or protected."""

  failing: ClassVar[dict] = {}  # Folder -> errno. What watches it stays until the process ends.
  watched: ClassVar[list] = []

  def __init__(self, path: Path):
    self.path = path
    path.mkdir()
    if not self.watched:
      sys.addaudithook(self._audit)
    self.watched.append(path)

  @classmethod
  def _audit(cls, event, arguments):
    if not cls.failing or event not in ('open', 'os.mkdir'):
      return
    path, _, flags = arguments
    if isinstance(path, str | os.PathLike) and (event == 'os.mkdir' or flags & WRITING):
      for folder, number in cls.failing.items():
        if folder in Path(path).parents:
          raise OSError(number, os.strerror(number), os.fspath(path))

  def fill(self, left: int = 0) -> None:
    self.failing[self.path] = errno.ENOSPC

  def make_room(self) -> None:
    self.failing.pop(self.path, None)

  def protect(self, on: bool = True) -> None:
    self.make_room()
    if on:
      self.failing[self.path] = errno.EROFS

  def close(self) -> None:
    self.make_room()
