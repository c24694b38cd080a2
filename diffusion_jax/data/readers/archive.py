"""A folder of images inside a .tar, .tar.gz or .zip: read as a stream, never extracted."""

import contextlib
import dataclasses
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data.decode import BadImage
from diffusion_jax.data.readers import imagenet
from diffusion_jax.data.readers.base import (
  Entry,
  File,
  Keep,
  Listing,
  Payload,
  Slice,
  checked_member,
  tree_listing,
)
from diffusion_jax.errors import DamagedError, InputError

TARS = ('.tar', '.tar.gz', '.tgz')
BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError)


@dataclasses.dataclass(frozen=True)
class Archive:
  """path: an existing file."""

  path: Path
  form: str = 'archive of images'

  @property
  def origin(self) -> str:
    return str(self.path)

  def listing(self, keep: Keep) -> Listing:
    """Raises: InputError for links and paths that lead outside; DamagedError if it ends early."""
    files, folders = [], []
    with told(self.path):
      for name, is_folder, size, key in self._members():
        (folders if is_folder else files).append(name if is_folder else File(name, size, key))
    return tree_listing(files, folders, self.origin, keep, lambda path: f'{self.path}:{path}')

  def _members(self) -> Iterator[tuple[str, bool, int, object]]:
    """(path, whether a folder, size, key): an offset in a plain tar, else the member's name."""
    if self.path.suffix == '.zip':
      with zipfile.ZipFile(self.path) as file:
        for info in file.infolist():
          refuse_links(self.path, info.filename, info.external_attr >> 28 == 0o12)
          name = checked_member(info.filename, self.origin)
          yield name, info.is_dir(), info.file_size, info.filename
      return
    with tarfile.open(self.path) as file:
      for member in file:
        refuse_links(self.path, member.name, not (member.isfile() or member.isdir()))
        name = checked_member(member.name, self.origin)
        key = member.offset_data if self.path.suffix == '.tar' else member.name
        yield name, member.isdir(), member.size, key

  def payloads(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Payload]]:
    with told(self.path):
      if self.path.suffix == '.tar':
        for number, entry in enumerate(entries):
          yield number, Slice(str(self.path), entry.key, entry.size)
      elif self.path.suffix == '.zip':
        with zipfile.ZipFile(self.path) as file:
          for number, entry in enumerate(entries):
            try:
              yield number, file.read(entry.key)
            except (zipfile.BadZipFile, zlib.error) as error:  # This member only.
              yield number, BadImage(f'damaged in the archive ({error})')
      else:
        numbers = {entry.key: number for number, entry in enumerate(entries)}
        with tarfile.open(self.path, 'r|gz') as file:  # One pass, in the order of the archive.
          for member in file:
            if member.name in numbers:
              yield numbers[member.name], file.extractfile(member).read()


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
  """What a broken archive raises becomes a DamagedError with its path."""
  try:
    yield
  except PermissionError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  except BROKEN as error:
    raise DamagedError(f'{path}: not a whole archive ({error}); fetch it again') from error


def refuse_links(path: Path, name: str, is_special: bool) -> None:
  """Raises: InputError for links and devices."""
  if is_special:
    raise InputError(f'{path}: member {name!r} is a link or a device, which is refused')


def matches(source: str) -> bool:
  """A file named so, but not one of ILSVRC2012's."""
  return source.endswith((*TARS, '.zip')) and not imagenet.matches(source)


def build(source: str) -> Archive:
  """Raises: InputError if the file does not exist."""
  path = Path(source).expanduser().absolute()
  if not path.is_file():
    raise InputError(f'config.data.source: {path}: no such file')
  return Archive(path)
