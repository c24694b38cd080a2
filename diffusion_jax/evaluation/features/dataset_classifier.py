"""A small CNN trained on the data set itself: features for data that is not natural photographs.

Trained once on the train split, in seconds for small images, and kept beside the data by the
fingerprint of the data and of its own settings. Needs no download.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import trange

from diffusion_jax.evaluation.types import Context
from diffusion_jax.randomness import purpose_key
from diffusion_jax.types import Array, DataSource, PyTree


class CNN(nn.Module):
  """Two convolutions a level, halved between levels, mean pool, one hidden layer."""

  channels: tuple[int, ...]
  feature_size: int
  num_classes: int

  @nn.compact
  def __call__(self, images: Array, *, train: bool = False) -> tuple[Array, Array]:
    """images (B,H,W,C) uint8 -> features (B, feature_size), logits (B, num_classes)."""
    h = images.astype(jnp.float32) / 127.5 - 1
    for level, channels in enumerate(self.channels):
      for _ in range(2):
        h = nn.Conv(channels, (3, 3))(h)
        h = nn.relu(nn.LayerNorm()(h))
      if level < len(self.channels) - 1:
        h = nn.max_pool(h, (2, 2), (2, 2))  # (B, H/2, W/2, C)
    h = h.reshape(h.shape[0], -1) if h.shape[1] * h.shape[2] <= 16 else h.mean(axis=(1, 2))
    features = nn.relu(nn.Dense(self.feature_size)(h))
    h = nn.Dropout(0.3, deterministic=not train)(features)
    return features, nn.Dense(self.num_classes)(h)


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetClassifier:
  """A trained CNN. digest: of its weights. notes: its held-out accuracy."""

  module: CNN
  params: PyTree
  digest: str
  notes: Mapping[str, float]
  name: str = 'dataset_classifier'
  resize: str = 'none'
  knows_labels: bool = True

  def apply(self, params: PyTree, images: Array) -> tuple[Array, Array]:
    """images (B,H,W,C) uint8 -> features (B, feature_size), logits (B, num_classes)."""
    return self.module.apply({'params': params}, images)


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


def train_params(
  module: CNN, source: DataSource, num_steps: int, batch_size: int, learning_rate: float, seed: int
) -> PyTree:
  """Adam with a cosine rate on random batches of `source`, images shifted by up to a tenth."""
  sample = source.read(np.arange(1))['image']
  key = purpose_key(seed, 'dataset_classifier')
  params = module.init(key, sample)['params']
  optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))
  reach = max(1, sample.shape[1] // 10)

  def loss(params, images, labels, key):
    _, logits = module.apply({'params': params}, images, train=True, rngs={'dropout': key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, opt_state, images, labels, key):
    grads = jax.grad(loss)(params, images, labels, key)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  rng, opt_state = np.random.default_rng(seed), optimizer.init(params)
  for number in trange(num_steps, desc='training the evaluation classifier', mininterval=5):
    batch = source.read(rng.integers(source.num_examples, size=batch_size))
    shift = tuple(rng.integers(-reach, reach + 1, size=2))
    images = shifted(batch['image'], shift)
    step_key = jax.random.fold_in(key, number)
    params, opt_state = step(params, opt_state, images, batch['label'], step_key)
  return params


def shifted(images: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
  """Images moved by whole pixels, the edge repeated: (N,H,W,C) -> (N,H,W,C)."""
  reach = max(abs(int(d)) for d in shift)
  padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode='edge')
  top, left = reach + int(shift[0]), reach + int(shift[1])
  return padded[:, top : top + images.shape[1], left : left + images.shape[2]]


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


def build(
  *,
  context: Context,
  channels: tuple[int, ...],
  feature_size: int,
  num_steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
) -> DatasetClassifier:
  """The cached network of this data set and these settings, trained first if there is none."""
  train, holdout = context.images('train'), context.images('holdout')
  module = CNN(tuple(channels), feature_size, len(train.label_names))
  settings = [tuple(channels), feature_size, num_steps, batch_size, learning_rate, seed]
  identity = json.dumps([train.fingerprint, holdout.fingerprint, *settings])
  name = hashlib.sha256(identity.encode()).hexdigest()[:16]
  path = context.cache_dir / 'features' / f'dataset_classifier-{name}.safetensors'
  cached = _load(path)
  if cached:
    params, notes = cached
  else:
    params = train_params(module, train, num_steps, batch_size, learning_rate, seed)
    params = jax.device_get(params)
    notes = {'holdout_accuracy': accuracy(module, params, holdout, batch_size)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f'.{os.getpid()}.tmp')
    metadata = {'digest': _digest(params), 'notes': json.dumps(notes), 'identity': identity}
    save_file(flatten_dict(params, sep='/'), temporary, metadata)
    os.replace(temporary, path)
  return DatasetClassifier(module, params, _digest(params), notes)
