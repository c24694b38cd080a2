"""Surveys an image set that nobody has prepared yet, and chooses its size and channels."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.decode import BadImage, header
from diffusion_jax.data.packing import content
from diffusion_jax.data.plan import list_source
from diffusion_jax.data.readers import open_source
from diffusion_jax.data.readers.base import Payload, Slice
from diffusion_jax.errors import InputError
from diffusion_jax.runtime.patience import progress

LOOKED_AT = 1000  # Images, spread over the source.
HEADER_BYTES = 2**20  # Read at the beginning of a file; the whole file where that is too little.
SIDES = (128, 64, 32)
FEW = 0.01  # Share of the images that may have to be enlarged.


class Survey(NamedTuple):
  """num_classes: of the class list, or all that were found."""

  num_classes: int
  image_size: int
  channels: int


def survey(source: str, class_list: str, label_order: str) -> Survey:
  """Lists a source and reads the headers of up to 1,000 images.

  Raises: InputError, DamagedError: as the readers; InputError if no image can be read.
  """
  reader = open_source(source)
  listing, classes = list_source(reader, class_list, label_order)
  entries = sorted(listing.entries, key=lambda e: (e.class_id, e.name))
  count = min(LOOKED_AT, len(entries))
  chosen = [entries[i] for i in np.linspace(0, len(entries) - 1, count).astype(int)]
  sides, gray = [], []
  payloads = itertools.islice(reader.payloads(chosen), count)
  for _, payload in progress(payloads, 'sizes', count, leave=False):
    try:
      side, is_gray = _header(payload)
    except BadImage:
      continue
    sides.append(side)
    gray.append(is_gray)
  if not sides:
    raise InputError(f'{reader.origin}: none of the first {count} images can be read')
  return Survey(len(classes.ids), side_for(sides), 1 if all(gray) else 3)


def _header(payload: Payload) -> tuple[int, bool]:
  if isinstance(payload, Slice) and not 0 <= payload.size <= HEADER_BYTES:
    with contextlib.suppress(BadImage):  # Some formats want all of it.
      return header(content(payload._replace(size=HEADER_BYTES)))
  return header(content(payload))


def side_for(sides: Sequence[int]) -> int:
  """Returns the largest of 128, 64 and 32 px that at most 1% of images with these short sides lack.

  Where even 32 is too large, the side that 1% lack, rounded down to a multiple of 4.
  """
  allowed = int(FEW * len(sides))
  least = sorted(sides)[allowed]
  return next((side for side in SIDES if side <= least), max(least // 4 * 4, 4))
