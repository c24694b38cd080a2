"""Reads a folder of image files of one size as a DataSource, without resizing, and writes one."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from diffusion_jax.data.decode import READ, BadImage, decode
from diffusion_jax.data.readers.base import is_hidden, printable
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files
from diffusion_jax.runtime.patience import progress
from diffusion_jax.types import DataSource, element_of

SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp')
AT_ONCE = 64  # Images.
ORIENTATION = 0x0112  # The tag of EXIF; 5 to 8 turn an image on its side.


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
  """names: paths below root, in order. shape: (H, W, C) of every image."""

  root: Path
  names: tuple[str, ...]
  shape: tuple[int, int, int]
  fingerprint: str
  label_names: Sequence[str] = ()

  @property
  def num_examples(self) -> int:
    return len(self.names)

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return element_of(self.shape)

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """indices (n,) -> image (n, H, W, C) uint8, label (n,) int32, all 0.

    Raises: DamagedError if a file is not readable, InputError if its size has changed.
    """
    paths = [self.root / self.names[index] for index in np.asarray(indices)]
    images = np.empty((len(paths), *self.shape), np.uint8)
    for number, pixels in enumerate(_threads(lambda path: _pixels(path, self.shape), paths)):
      images[number] = pixels
    return {'image': images, 'label': np.zeros(len(paths), np.int32)}


def open_folder(path: Path, channels: int) -> ImageFolder:
  """Opens all images below a folder, sorted by path. channels: 3 RGB, or 1 luma.

  Follows symbolic links. fingerprint: that of the names and the decoded pixels.

  The headers of all files are read first, then once all pixels.
  Raises: InputError for no images or images of several sizes, DamagedError for an unreadable one.
  """
  if not path.is_dir():
    raise InputError(f'{path}: no such folder')
  names = []
  for folder, folders, inside in files.walk(path):
    folders.sort()
    below = [(folder / file).relative_to(path).as_posix() for file in inside]
    names += [n for n in below if n.lower().endswith(SUFFIXES) and not is_hidden(n)]
  if not names:
    raise InputError(f'{path}: no images in it, looked for {" ".join(SUFFIXES)}')
  names.sort()
  paths = [path / name for name in names]
  sizes = iter(progress(_threads(_size, paths), 'sizes', len(paths)))
  width, height = next(sizes)
  for other, size in zip(paths[1:], sizes):
    if size != (width, height):
      raise _mixed(other, size, f'{printable(str(paths[0]))} is {width}x{height}')
  shape = (height, width, channels)
  digest = hashlib.sha256(repr(shape).encode())
  pixels = _threads(lambda file: _pixels(file, shape), paths)
  for name, image in zip(names, progress(pixels, 'reading', len(paths))):
    digest.update(os.fsencode(name) + b'\0')
    digest.update(image)
  return ImageFolder(path, tuple(names), shape, digest.hexdigest()[:16])


def _size(path: Path) -> tuple[int, int]:
  """Reads (width, height) from the header. Raises: DamagedError."""
  try:
    if not path.is_file():  # Opening a pipe would wait for ever.
      raise OSError('not a regular file')
    with Image.open(path, formats=READ) as image:
      turned = image.format == 'JPEG' and image.getexif().get(ORIENTATION, 1) >= 5
      return image.size[::-1] if turned else image.size
  except Exception as error:  # Pillow's readers raise whatever their format's parser met.
    raise _damaged(path, str(error)) from error


def _pixels(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
  """Reads (H, W, C) uint8. Raises: DamagedError; InputError if it has another size."""
  try:
    image, _ = decode(path.read_bytes())
  except (BadImage, OSError) as error:
    raise _damaged(path, str(error)) from error
  height, width, channels = shape
  if image.size != (width, height):
    raise _mixed(path, image.size, f'others are {width}x{height}')
  return np.asarray(image) if channels == 3 else np.asarray(image.convert('L'))[..., None]


def _mixed(path: Path, size: tuple[int, int], others: str) -> InputError:
  return InputError(
    f'{printable(str(path))}: mixed sizes in a folder: {size[0]}x{size[1]}, but {others}; nothing is '
    'resized here, so prepare the folder instead: --mode=prepare --config.data.source=FOLDER'
  )


def _damaged(path: Path, why: str) -> DamagedError:
  return DamagedError(f'{printable(str(path))}: not a readable image ({why})')


def _threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
  """Yields function of every item in order, by as many threads as there are cores, a few ahead."""
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(items), AT_ONCE):
      yield from pool.map(function, items[start : start + AT_ONCE])


def write(folder: Path, source: DataSource, parents: Sequence[str] = ()) -> int:
  """Writes CLASS/000000.png and so on, one an image; those there are left, other numbered ones removed.

  parents: the class folder of each image; without them all files lie in `folder`. If the first one
  there is another image than the source's, all are written. Returns: how many were.
  """
  folder.mkdir(parents=True, exist_ok=True)
  paths = [
    folder / parent / f'{number:06d}.png'
    for number, parent in enumerate(parents or [''] * source.num_examples)
  ]
  there = set()
  for path in [*folder.glob('*.png'), *folder.glob('*/*.png')]:
    number = int(path.stem) if path.stem.isdecimal() else -1
    if 0 <= number < len(paths) and path == paths[number]:
      there.add(number)
    elif number >= 0 and path.name == f'{number:06d}.png':
      _remove(path, folder)
  if there and not _is_same(paths[min(there)], source.read(np.array([min(there)]))['image'][0]):
    there = set()
  absent = np.array([n for n in range(len(paths)) if n not in there], int)
  for parent in {paths[number].parent for number in absent}:
    parent.mkdir(exist_ok=True)
  with progress(None, 'png', len(absent)) as bar, ThreadPoolExecutor(os.cpu_count()) as pool:
    for start in range(0, len(absent), AT_ONCE):
      numbers = absent[start : start + AT_ONCE]
      images = source.read(numbers)['image']
      list(pool.map(files.write_png, [paths[number] for number in numbers], images))
      bar.update(len(numbers))
  return len(absent)


def _remove(path: Path, root: Path) -> None:
  """Removes a file and its class folder, if nothing is left in that: it would be a class without images."""
  path.unlink()
  if path.parent != root and not any(path.parent.iterdir()):
    path.parent.rmdir()


def _is_same(path: Path, image: np.ndarray) -> bool:
  try:
    with Image.open(path, formats=['PNG']) as stored:
      pixels = np.asarray(stored)
  except Exception:  # Pillow's readers raise whatever their format's parser met.
    return False
  return np.array_equal(pixels.reshape(pixels.shape[:2] + (-1,)), image)
