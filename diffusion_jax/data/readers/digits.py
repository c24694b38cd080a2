"""scikit-learn's handwritten digits: 1,797 real 8x8 images of 10 classes, bundled with the package."""

import dataclasses
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from diffusion_jax.data.readers.base import Entry, Keep, Listing, Payload


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
  """pixels (N, 8, 8) uint8: round(x * 255 / 16) of the original 0..16; labels (N,)."""

  pixels: np.ndarray
  labels: np.ndarray
  origin: str = 'digits'
  form: str = "scikit-learn's digits"

  def listing(self, keep: Keep) -> Listing:
    entries = [
      Entry('train', str(label), f'{number:04d}', f'digits/{number}', -1, '', number)
      for number, label in enumerate(self.labels)
      if keep(str(label))
    ]
    return Listing(entries, [str(digit) for digit in range(10)], [])

  def payloads(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Payload]]:
    for number, entry in enumerate(entries):
      file = io.BytesIO()
      Image.fromarray(self.pixels[entry.key]).save(file, format='PNG')
      yield number, file.getvalue()


def matches(source: str) -> bool:
  return source == 'digits'


def build(source: str) -> Digits:
  del source
  from sklearn.datasets import load_digits

  data = load_digits()
  return Digits(np.round(data.images * 255 / 16).astype(np.uint8), data.target)
