"""Images and reference statistics in the .npz form of ADM's evaluation suite.

Dhariwal & Nichol (2021, arXiv:2105.05233, released code): arr_0 holds images (N, H, W, 3) uint8, arr_1
labels; mu (D,) and sigma (D, D) the mean and the covariance of features. Other arrays are not read.
"""

import hashlib
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files
from diffusion_jax.runtime.patience import progress
from diffusion_jax.types import DataSource

ALLOWED = "'arr_0' (images, uint8 (N, H, W, 3)), 'mu' (D,) with 'sigma' (D, D), or all three"
AT_ONCE = 256  # Images, when they are written.
LOCAL_HEADER = (
  30  # Bytes before a member's name, with the sizes of the name and of what follows it.
)
SYMMETRY = 1e-4  # Relative to the largest entry; float32 rounds that much.
UNREADABLE = (
  *(zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError, struct.error),
  *(SyntaxError, tokenize.TokenError),  # Of a header that is no Python literal.
)


class Reference(NamedTuple):
  """images: (N, H, W, 3) uint8, mapped into memory where the file is not compressed; or None.

  mean: (D,), covariance: (D, D), float64; or None. digest: 16 hexadecimal digits of the file.
  """

  images: np.ndarray | None
  mean: np.ndarray | None
  covariance: np.ndarray | None
  digest: str


def read(path: Path) -> Reference:
  """Reads the images and feature statistics of the file.

  Raises: InputError if it holds something else, DamagedError if it is no whole .npz file.
  """
  try:
    with open(path, 'rb') as file:
      digest = hashlib.file_digest(file, 'sha256').hexdigest()[:16]
    with zipfile.ZipFile(path) as archive:
      wrong = archive.testzip()
      if wrong:
        raise zipfile.BadZipFile(f'{wrong} is not what was written')
      names = [n.removesuffix('.npy') for n in archive.namelist() if n.endswith('.npy')]
      wanted = [name for name in ('arr_0', 'mu', 'sigma') if name in names]
      arrays = {name: _array(path, archive, name) for name in wanted}
  except OSError as error:
    raise InputError(f'{path}: cannot be read ({error.strerror})') from error
  except UNREADABLE as error:
    raise DamagedError(f'{path}: not a whole .npz file ({error}); get it again') from error
  if not arrays or ('mu' in arrays) != ('sigma' in arrays):
    found = ', '.join(map(repr, names)) or 'nothing'
    raise InputError(f'{path}: got {found}, allowed {ALLOWED}')
  images, stats = arrays.get('arr_0'), (None, None)
  if images is not None and (
    images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size
  ):
    raise InputError(
      f"{path}: 'arr_0' is {images.dtype} {images.shape}, allowed uint8 (N, H, W, 3) with N > 0"
    )
  if 'mu' in arrays:
    stats = _feature_stats(path, arrays['mu'], arrays['sigma'])
  return Reference(images, *stats, digest)


def _array(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
  """Reads one array, whose bytes were checked. Raises: InputError if it holds Python objects."""
  member = archive.getinfo(f'{name}.npy')
  with archive.open(member) as file:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_2_0
    if version == (1, 0):
      read_header = np.lib.format.read_array_header_1_0
    shape, by_columns, dtype = read_header(file)
    if dtype.hasobject:
      raise InputError(f'{path}: {name!r} holds Python objects, allowed numbers: {ALLOWED}')
    header_size, count, order = file.tell(), math.prod(shape), 'F' if by_columns else 'C'
    if header_size + count * dtype.itemsize != member.file_size:
      raise ValueError(f'{name} is not as long as it says')
    if member.compress_type != zipfile.ZIP_STORED or 0 in shape:
      flat = np.frombuffer(file.read(), dtype, count)
      return flat.reshape(shape, order=order)
  with open(path, 'rb') as file:
    file.seek(member.header_offset + LOCAL_HEADER - 4)
    name_size, extra_size = struct.unpack('<HH', file.read(4))
  start = member.header_offset + LOCAL_HEADER + name_size + extra_size + header_size
  return np.asarray(np.memmap(path, dtype, 'r', start, shape, order))


def _feature_stats(
  path: Path, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  shapes = f"'mu' {mean.dtype} {mean.shape}, 'sigma' {covariance.dtype} {covariance.shape}"
  real = all(x.dtype.kind == 'f' for x in (mean, covariance))
  if not real or mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)):
    raise InputError(f'{path}: got {shapes}, allowed floating point (D,) and (D, D)')
  mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
  if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
    raise InputError(f"{path}: 'mu' or 'sigma' has entries that are not finite")
  uneven = np.abs(covariance - covariance.T).max()
  if uneven > SYMMETRY * np.abs(covariance).max():
    raise InputError(
      f"{path}: 'sigma' is no covariance: it differs from its transpose by up to {uneven:g}, "
      f'allowed {SYMMETRY:g} of its largest entry {np.abs(covariance).max():g}'
    )
  return mean, covariance


def write_feature_stats(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
  """Writes mean (D,) and covariance (D, D) as mu and sigma, beside the file and then renamed."""
  files.write_npz(path, mu=mean, sigma=covariance)


def write_images(path: Path, source: DataSource, comment: str = '') -> None:
  """Writes all images of a source as arr_0 and their labels as arr_1, beside the file and then renamed.

  Gray images are repeated in three channels. A few images are in memory at a time, and equal sources
  give equal files. comment: kept by the archive, see comment_of.
  """
  height, width, _ = source.element['image'].shape
  count = source.num_examples
  labels = np.zeros(count, np.int64)
  with (
    progress(None, path.name, count) as bar,
    files.replacing(path) as stream,
    zipfile.ZipFile(stream, 'w', zipfile.ZIP_STORED) as archive,
  ):
    archive.comment = comment.encode()
    with _member(archive, 'arr_0', (count, height, width, 3), np.dtype(np.uint8)) as file:
      for start in range(0, count, AT_ONCE):
        index = np.arange(start, min(start + AT_ONCE, count))
        batch = source.read(index)
        labels[index] = batch['label']
        rgb = np.broadcast_to(batch['image'], (*batch['image'].shape[:3], 3))
        file.write(np.ascontiguousarray(rgb).tobytes())
        bar.update(len(index))
    with _member(archive, 'arr_1', labels.shape, labels.dtype) as file:
      file.write(labels.tobytes())


def _member(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype):
  """Opens a member of the archive for an array's values, and writes its header."""
  always = (1980, 1, 1, 0, 0, 0)  # Or equal content would not give equal files.
  file = archive.open(zipfile.ZipInfo(f'{name}.npy', always), 'w', force_zip64=True)
  description = np.lib.format.dtype_to_descr(dtype)
  header = {'descr': description, 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file


def comment_of(path: Path) -> str | None:
  """Returns the comment given to write_images; None if there is no such file."""
  try:
    with zipfile.ZipFile(path) as archive:
      return archive.comment.decode()
  except (OSError, UnicodeDecodeError, *UNREADABLE):
    return None
