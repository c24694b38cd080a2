"""A small CNN trained on the data set itself: features for data that is not natural photographs.

Trained once on the train split and kept beside the data by the fingerprint of the data and of its own
settings. Needs no download. Training takes as many of num_steps as fit into max_seconds on this machine,
and goes on where it was interrupted.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from diffusion_jax.config.options import option
from diffusion_jax.evaluation.classifier_training import train_params
from diffusion_jax.evaluation.types import Context, FeatureNetwork
from diffusion_jax.runtime import files, hosts
from diffusion_jax.types import Array, DataSource, PyTree

LARGEST = 32  # Pixels a side that the first level sees at their own size.
REDUCED = 16  # To which larger images are reduced: a step costs a fourth of one at 32.


class CNN(nn.Module):
  """Two convolutions a level, halved between levels, mean pool, one hidden layer.

  Images of more than 32 px are reduced to 16..24 px by the stride of the first convolution, which sees
  every pixel.
  """

  channels: tuple[int, ...]
  feature_size: int
  num_classes: int

  @nn.compact
  def __call__(self, images: Array, *, train: bool = False) -> tuple[Array, Array]:
    """images (B,H,W,C) uint8 -> features (B, feature_size), logits (B, num_classes)."""
    h = images.astype(jnp.float32) / 127.5 - 1
    stride = first_stride(images.shape[1])
    for level, channels in enumerate(self.channels):
      for number in range(2):
        by = stride if level == number == 0 else 1
        size = 3 if by == 1 else 2 * by
        h = nn.Conv(channels, (size, size), (by, by))(h)
        h = nn.relu(nn.LayerNorm()(h))
      if level < len(self.channels) - 1:
        h = nn.max_pool(h, (2, 2), (2, 2))  # (B, H/2, W/2, C)
    h = h.reshape(h.shape[0], -1) if h.shape[1] * h.shape[2] <= 16 else h.mean(axis=(1, 2))
    features = nn.relu(nn.Dense(self.feature_size)(h))
    h = nn.Dropout(0.3, deterministic=not train)(features)
    return features, nn.Dense(self.num_classes)(h)


def first_stride(side: int) -> int:
  """Returns the stride of the first convolution for images of `side` pixels."""
  return 1 if side <= LARGEST else side // REDUCED


def near_chance(accuracy: float, num_classes: int) -> list[str]:
  """A warning if the features are worth little: the classifier hardly tells the classes apart."""
  chance = 1 / max(num_classes, 1)
  if num_classes > 1 and accuracy >= min(2 * chance, (1 + chance) / 2):
    return []
  return [
    f'dataset_classifier gets {accuracy:.1%} of held-out images right, chance is {chance:.1%} of '
    f'{num_classes} classes: numbers of its features say little; train it longer '
    '(config.eval.features.dataset_classifier) or use other features'
  ]


def accuracy(module: CNN, params: PyTree, source: DataSource, batch_size: int) -> float:
  """Share of the images of a source that get their own label."""
  predict = jax.jit(lambda params, images: module.apply({'params': params}, images)[1].argmax(-1))
  right, count = 0, source.num_examples
  for start in range(0, count, batch_size):
    indices = np.minimum(np.arange(start, start + batch_size), count - 1)  # One shape.
    batch = source.read(indices)
    agree = np.asarray(predict(params, batch['image'])) == batch['label']
    right += int(agree[: count - start].sum())
  return right / count


def _digest(params: PyTree) -> str:
  flat = sorted(flatten_dict(jax.device_get(params), sep='/').items())
  return hashlib.sha256(b''.join(k.encode() + v.tobytes() for k, v in flat)).hexdigest()[:16]


def _load(path: Path) -> tuple[PyTree, dict[str, float]] | None:
  """Cached parameters and notes, or None if there are none that are whole."""
  try:
    with safe_open(path, framework='numpy') as file:
      flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
      metadata = file.metadata()
  except (OSError, SafetensorError):
    return None
  params = unflatten_dict(flat, sep='/')
  if metadata['digest'] != _digest(params):
    return None
  return params, json.loads(metadata['notes'])


@dataclasses.dataclass(frozen=True)
class DatasetClassifier:
  """A small CNN that is trained on the data set once."""

  channels: tuple[int, ...] = option((32, 64), 'Channels of each level.')
  feature_size: int = option(64, 'Features per image.')
  num_steps: int = option(600, 'Steps of its training.')
  batch_size: int = option(128, 'Images per step of its training.')
  learning_rate: float = option(2e-3, 'Learning rate of its training.')
  seed: int = option(0, 'Seed of its training.')
  max_seconds: float = option(120.0, 'Time limit of its training in seconds; 0 sets none.')

  def build(self, context: Context) -> FeatureNetwork:
    """The cached network of this data set and these settings, trained first if there is none.

    The first host trains; the others wait for its file.
    """
    train, holdout = context.images('train'), context.images('holdout')
    module = CNN(tuple(self.channels), self.feature_size, len(train.label_names))
    training = (self.num_steps, self.batch_size, self.learning_rate, self.seed)
    settings = [tuple(self.channels), self.feature_size, *training]
    stride = first_stride(train.element['image'].shape[0])
    settings += [f'stride {stride}'] if stride > 1 else []
    identity = json.dumps([train.fingerprint, holdout.fingerprint, *settings])
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = context.cache_dir / 'features' / f'dataset_classifier-{name}.safetensors'

    def ensure():
      if _load(path):
        return
      kept = path.with_suffix('.part')
      found = train_params(module, train, *training, self.max_seconds, kept)
      params, taken = jax.device_get(found[0]), found[1]
      notes = {'holdout_accuracy': accuracy(module, params, holdout, self.batch_size)}
      notes |= {'num_steps': taken} if taken < self.num_steps else {}
      metadata = {'digest': _digest(params), 'notes': json.dumps(notes), 'identity': identity}
      files.write(path, save(flatten_dict(params, sep='/'), metadata))
      kept.unlink(missing_ok=True)

    hosts.from_first(ensure)
    params, notes = _load(path)
    return FeatureNetwork(
      'dataset_classifier',
      _digest(params),
      lambda params, images: module.apply({'params': params}, images),
      params,
      knows_labels=True,
      notes=notes,
      warnings=near_chance(notes['holdout_accuracy'], module.num_classes),
    )
