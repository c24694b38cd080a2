"""Reads a folder of images inside a tar (plain or compressed) or a zip as a stream, never extracted."""

import dataclasses
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data.decode import BadImage
from diffusion_jax.data.readers import base, imagenet
from diffusion_jax.errors import InputError
from diffusion_jax.runtime.patience import progress

SUFFIXES = ('.tar', '.gz', '.tgz', '.bz2', '.xz', '.zip')
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
COMPRESSED = (b'\x1f\x8b', b'BZ', b'\xfd7')  # The first bytes of gz, bz2 and xz.


@dataclasses.dataclass(frozen=True)
class Archive:
  """path: an existing file. kind: 'zip', 'tar' or 'compressed tar', from its content."""

  path: Path
  kind: str

  @property
  def form(self) -> str:
    return f'{self.kind} of images'

  @property
  def origin(self) -> str:
    return base.printable(str(self.path))

  def listing(self, keep: base.Keep) -> base.Listing:
    """Raises: InputError for links and paths that lead outside; DamagedError if it is not whole."""
    files, folders = [], []
    stamp = base.stamp_of(self.path.stat())
    with base.told(self.path):
      members = progress(self._members(), 'listing', None, unit='file', leave=False)
      for name, is_folder, size, key in members:
        if is_folder:
          folders.append(name)
        else:
          files.append(base.File(name, size, f'{stamp} {size}', key))
    return base.tree_listing(files, folders, self.origin, keep, ':')

  def _members(self) -> Iterator[tuple[str, bool, int, int]]:
    """Yields (path, whether a folder, size, key): an offset in a plain tar, else the member's number."""
    if self.kind == 'zip':
      with zipfile.ZipFile(self.path) as file:
        for number, info in enumerate(file.infolist()):
          is_link = info.external_attr >> 28 == 0o12
          name = base.checked_member(info.filename, self.origin, is_special=is_link)
          encrypted = info.flag_bits & 1
          if encrypted or info.compress_type not in READABLE:
            how = 'encrypted' if encrypted else f'compressed by method {info.compress_type}'
            raise InputError(f'{self.origin}: member {name} is {how}; repack it as a plain zip')
          yield name, info.is_dir(), info.file_size, number
      return
    with tarfile.open(self.path) as file:
      for number, member in enumerate(file):
        is_special = not (member.isfile() or member.isdir())
        name = base.checked_member(member.name, self.origin, is_special=is_special)
        key = member.offset_data if self.kind == 'tar' else number
        yield name, member.isdir(), member.size, key
      base.require_end(file)

  def payloads(self, entries: Sequence[base.Entry]) -> Iterator[tuple[int, base.Payload]]:
    with base.told(self.path):
      if self.kind == 'tar':
        for number, entry in enumerate(entries):
          yield number, base.Slice(str(self.path), entry.key, entry.size)
      elif self.kind == 'zip':
        with zipfile.ZipFile(self.path) as file:
          infos = file.infolist()
          for number, entry in enumerate(entries):
            try:
              base.require_size(entry.size)
              yield number, file.read(infos[entry.key])
            except BadImage as error:
              yield number, error
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:  # This member only.
              yield number, BadImage(f'damaged in the archive ({error})')
      else:
        numbers = {entry.key: number for number, entry in enumerate(entries)}
        with tarfile.open(self.path, 'r|*') as file:  # One pass, in the order of the archive.
          for key, member in enumerate(file):
            if key in numbers:
              try:
                base.require_size(member.size)
                yield numbers[key], file.extractfile(member).read()
              except BadImage as error:
                yield numbers[key], error


def matches(source: str) -> bool:
  """Matches a file, or a name like an archive's; but none of ILSVRC2012's."""
  path = Path(source).expanduser()
  named = path.suffix.lower() in SUFFIXES and not path.is_dir()
  return (path.is_file() or named) and not imagenet.matches(source)


def build(source: str) -> Archive:
  """Finds the kind of archive by its content. Raises: InputError if there is no file, or no archive."""
  path = Path(source).expanduser().absolute()
  if not path.is_file():
    raise InputError(f'config.data.source: {path}: no such file')
  try:
    with open(path, 'rb') as file:
      start = file.read(512)
  except OSError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  if start[:2] == b'PK':
    return Archive(path, 'zip')
  if start[:2] in COMPRESSED:
    return Archive(path, 'compressed tar')
  if start[257:262] == b'ustar' or path.suffix.lower() == '.tar':
    return Archive(path, 'tar')
  raise InputError(
    f'config.data.source: {path}: neither a tar nor a zip by its first bytes; allowed a folder of '
    'images or an archive of one'
  )
