"""Defines readers, the layout of folders of images on disk or in an archive, and whole archives."""

import bz2
import contextlib
import gzip
import lzma
import os
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from diffusion_jax.data.decode import FORMATS, BadImage
from diffusion_jax.errors import DamagedError, InputError

# Folder -> split. Kaggle cuts ImageNet-100's train into train.X1 .. train.X4.
SPLIT = re.compile(r'(train|validation|val|test)(?:\.X\d*)?', re.IGNORECASE)
HOLDOUT_NAMES = ('validation', 'val', 'test')  # The first that is there becomes the holdout.
EXPECTED = (
  'expected train/CLASS/FILE with validation/, val/ or test/ beside it, or CLASS/FILE, or all files '
  'in one folder, without classes'
)
SOURCES = (
  "a folder of images, a .tar, .tar.gz or .zip of one, the folder of ILSVRC2012's archives, a TFDS name "
  "such as 'cifar10', or 'digits'"
)
MAX_BYTES = 2**28  # Of one image file; what is larger is no image, or meant to fill the memory.
FLAT = 'images'  # The only class where no image lies in a class folder.
BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError)
HIDDEN = ('.', '__MACOSX')
CONTROL = ('Cc', 'Zl', 'Zp')  # Unicode's control characters and line separators.


class Slice(NamedTuple):
  """Bytes of a file that any process can read; size -1 is all of it."""

  path: str
  offset: int = 0
  size: int = -1

  def read(self) -> bytes:
    """Raises: BadImage for a pipe or a device, which might never end; OSError."""
    status = os.stat(self.path)
    if not stat.S_ISREG(status.st_mode):
      raise BadImage('not a regular file')
    require_size(status.st_size if self.size < 0 else self.size)
    with open(self.path, 'rb') as file:
      file.seek(self.offset)
      return file.read(self.size)


def require_size(size: int) -> None:
  """Raises: BadImage for more bytes than an image file has."""
  if size > MAX_BYTES:
    raise BadImage(f'{size:,} bytes, allowed {MAX_BYTES:,}')


class Entry(NamedTuple):
  """One image of a source: not read yet.

  split: 'train' or 'holdout'. class_id: as the source calls it. name: of the file below its class.
  where: for messages. size: in bytes, -1 unknown. stamp: another one, another content. key: how the
  reader finds it again.
  """

  split: str
  class_id: str
  name: str
  where: str
  size: int
  stamp: str
  key: Any


class Listing(NamedTuple):
  """entries: in any order. class_ids: all classes that the source has, wanted or not, in its order.

  notes: the files left out and why, a line each.
  """

  entries: list[Entry]
  class_ids: list[str]
  notes: list[str]


Payload = bytes | Slice | BadImage
Keep = Callable[[str], bool]  # Whether a class is wanted.


class Reader(Protocol):
  """origin: the path or name, for messages. form: the form that it was taken for."""

  origin: str
  form: str

  def listing(self, keep: Keep) -> Listing:
    """Lists every image of the wanted classes. Raises: InputError if the layout is not understood."""

  def payloads(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Payload]]:
    """Yields (position in `entries`, content), in the order that suits the source."""


class File(NamedTuple):
  """A file of a tree: path relative to its root, fit to be printed."""

  path: str
  size: int
  stamp: str
  key: Any


def printable(name: str) -> str:
  """Writes a file name in one line: bytes that are not UTF-8, and line breaks, as backslash escapes."""
  text = os.fsencode(name).decode('utf-8', 'backslashreplace')
  if text.isprintable():
    return text
  return ''.join(
    c.encode('unicode_escape').decode() if unicodedata.category(c) in CONTROL else c for c in text
  )


def stamp_of(status: os.stat_result) -> str:
  """Returns size and time of a file, which change with its content."""
  return f'{status.st_size} {status.st_mtime_ns}'


def checked_member(name: str, origin: str, *, is_special: bool = False) -> str:
  """Returns a member's path without './'.

  Raises: InputError for links and devices (is_special), and for a path that leaves the archive.
  """
  if is_special:
    raise InputError(f'{origin}: member {name!r} is a link or a device, which is refused')
  path = PurePosixPath(name.replace('\\', '/'))
  if path.is_absolute() or '..' in path.parts or re.match(r'[A-Za-z]:', name):
    raise InputError(f'{origin}: member {name!r} points outside of the archive, which is refused')
  return printable(str(path))


def is_image(path: str) -> bool:
  """Returns whether a file is an image by its name."""
  return Path(path).suffix.lower() in FORMATS


def is_hidden(path: str) -> bool:
  """Returns whether a part of the path is what systems put beside files."""
  return any(part.startswith(HIDDEN) for part in path.split('/'))


def tree_listing(
  files: list[File], folders: list[str], origin: str, keep: Keep, separator: str
) -> Listing:
  """Lists the images of a tree, its split and classes taken from the paths.

  files, folders: relative paths with '/'; folders are there to notice empty classes. separator: what
  stands between origin and path in messages. Of files with one path, the last one counts.
  Raises: InputError for no images, another layout, or a class without images.
  """
  unique = list({f.path: f for f in files}.values())
  images = [f for f in unique if is_image(f.path) and not is_hidden(f.path)]
  if not images:
    some = ', '.join(f.path for f in unique[:3]) or 'nothing'
    suffixes = ' '.join(sorted(FORMATS))
    raise InputError(f'{origin}: no images in it (found {some}); looked for {suffixes}')
  root = _common_root(images)
  depth = len(root)
  splits, notes = _splits({f.path.split('/')[depth] for f in images}, origin)
  notes += _left_out(files, unique)
  entries, class_ids = [], set()
  below = [f.path.split('/')[depth + bool(splits) :] for f in images]
  is_flat = all(len(parts) == 1 for parts in below)
  for file, parts in zip(images, below):
    split = splits.get(file.path.split('/')[depth], '') if splits else 'train'
    if not split:
      continue
    if is_flat:
      parts = [FLAT, *parts]
    if len(parts) < 2:
      raise InputError(f'{origin}: {file.path} lies in no class folder; {EXPECTED}')
    class_ids.add(parts[0])
    if keep(parts[0]):
      place, name = f'{origin}{separator}{file.path}', '/'.join(parts[1:])
      entries.append(Entry(split, parts[0], name, place, file.size, file.stamp, file.key))
  if not is_flat:
    _require_images(entries, folders, depth, splits, origin, keep)
  return Listing(entries, sorted(class_ids), notes)


def _left_out(given: Sequence[File], unique: Sequence[File]) -> list[str]:
  """Returns a note for each kind of file that is not used."""
  hidden = [f for f in unique if is_hidden(f.path)]
  others = [f for f in unique if not is_hidden(f.path) and not is_image(f.path)]
  kinds = {'hidden files': hidden, 'files that are no images by their names': others}
  notes = [f'left out, {n}: {len(fs)}, such as {fs[0].path}' for n, fs in kinds.items() if fs]
  twice = len(given) - len(unique)
  return notes + ([f'left out, earlier files of the same path: {twice}'] if twice else [])


def _common_root(images: Sequence[File]) -> list[str]:
  """Finds the folders that hold nothing but one folder, down to the splits or the classes."""
  root: list[str] = []
  while True:
    below = [f.path.split('/')[len(root) :] for f in images]
    tops = {parts[0] for parts in below}
    only = next(iter(tops))
    if len(tops) > 1 or SPLIT.fullmatch(only) or any(len(parts) < 3 for parts in below):
      return root
    root.append(only)


def _splits(tops: set[str], origin: str) -> tuple[dict[str, str], list[str]]:
  """Returns folder -> split, empty if the tree has no split level; and notes of what was left out."""
  kinds = {top: match[1].lower() for top in tops if (match := SPLIT.fullmatch(top))}
  if not kinds:
    return {}, []
  strangers = sorted(tops - set(kinds))
  if strangers:
    raise InputError(
      f'{origin}: {", ".join(strangers[:3])} beside {", ".join(sorted(kinds))}; {EXPECTED} '
      '(if these are classes, put all of them into a folder train/)'
    )
  if 'train' not in kinds.values():
    raise InputError(f'{origin}: {", ".join(sorted(kinds))} without train; {EXPECTED}')
  holdout = next((name for name in HOLDOUT_NAMES if name in kinds.values()), '')
  splits = {'train': 'train', holdout: 'holdout'}
  left_out = sorted(top for top, kind in kinds.items() if kind not in splits)
  notes = [f'left out, {top}/: {holdout}/ is the held-out set' for top in left_out]
  return {top: splits.get(kind, '') for top, kind in kinds.items()}, notes


def _require_images(entries, folders, depth, splits, origin, keep) -> None:
  """Raises: InputError for a wanted class folder without images, or one that only the holdout has."""
  found = {(e.split, e.class_id) for e in entries}
  for folder in sorted(folders):
    parts = folder.split('/')[depth:]
    split = splits.get(parts[0], '') if splits and parts else 'train'
    parts = parts[1:] if splits else parts
    if len(parts) != 1 or not split or is_hidden(folder) or not keep(parts[0]):
      continue
    if (split, parts[0]) not in found:
      raise InputError(
        f'{origin}: class {parts[0]} has no images (folder {folder}); fill it or remove it'
      )
  strangers = {c for s, c in found if s == 'holdout'} - {c for s, c in found if s == 'train'}
  if strangers:
    raise InputError(
      f'{origin}: classes {", ".join(sorted(strangers)[:5])} are held out but not in train'
    )


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
  """Raises a DamagedError with its path for the errors of a broken archive."""
  try:
    yield
  except PermissionError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  except BROKEN as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise DamagedError(f'{path}: not a whole archive ({reason}); fetch it again') from error


def require_end(file: tarfile.TarFile) -> None:
  """Raises: tarfile.ReadError if a fully listed tar does not end with its end mark.

  tarfile takes a broken or missing header in the middle for the end. Reads on to the end of the
  file, because a compressed one has its checksum there.
  """
  compressed = isinstance(file.fileobj, (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile))
  if (
    not compressed
  ):  # If going back is cheap, look for the first of two empty blocks, otherwise for the second.
    file.fileobj.seek(file.offset)
  if file.fileobj.read(512) != bytes(512):
    raise tarfile.ReadError(f'no end mark after byte {file.offset:,}: cut short or damaged')
  while compressed and file.fileobj.read(2**20):
    pass
