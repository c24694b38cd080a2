"""scikit-learn's handwritten digits: 1,797 real 8x8 images of 10 classes, bundled with the package."""

import dataclasses
import hashlib

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
  """One split in memory: images (N, 8, 8, 1) uint8, labels (N,) int32."""

  images: np.ndarray
  labels: np.ndarray
  label_names: tuple[str, ...]
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.images)

  @property
  def element(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {
      'image': jax.ShapeDtypeStruct(self.images.shape[1:], np.uint8),
      'label': jax.ShapeDtypeStruct((), np.int32),
    }

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """indices (n,) -> image (n, 8, 8, 1) uint8, label (n,) int32."""
    return {'image': self.images[indices], 'label': self.labels[indices]}


def build(*, split: str, holdout_size: int, split_seed: int) -> Digits:
  """split 'train' or 'holdout'; pixels are round(x * 255 / 16) of the original 0..16.

  Raises: ValueError if holdout_size leaves a split without all classes.
  """
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  pixels, labels = load_digits(return_X_y=True)
  if not 10 <= holdout_size <= len(labels) - 10:
    raise ValueError(f'holdout_size: got {holdout_size}, allowed 10..{len(labels) - 10}')
  train, holdout = train_test_split(
    np.arange(len(labels)), test_size=holdout_size, stratify=labels, random_state=split_seed
  )
  chosen = {'train': train, 'holdout': holdout}[split]
  images = np.round(pixels[chosen] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
  labels = labels[chosen].astype(np.int32)
  digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:16]
  return Digits(images, labels, tuple('0123456789'), f'digits-{split}-{digest}')
