"""Training the dataset classifier: as many steps as fit into a given time, resumable."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from flax import serialization
from tqdm import tqdm

from diffusion_jax.randomness import purpose_key
from diffusion_jax.runtime import files, xla_options
from diffusion_jax.types import DataSource, PyTree

TIMED_STEPS = 3
MIN_STEPS = 50  # However slow the machine.
SAVED_EVERY_SECONDS = 20


class Progress(NamedTuple):
  """Training after `step` of `num_steps` steps."""

  step: int
  num_steps: int
  params: PyTree
  opt_state: PyTree


def train_params(
  module: nn.Module,
  source: DataSource,
  num_steps: int,
  batch_size: int,
  learning_rate: float,
  seed: int,
  max_seconds: float,
  kept: Path,
) -> tuple[PyTree, int]:
  """Adam with a cosine rate on random batches of `source`, images shifted by up to a tenth.

  kept: a file for what is done when this is interrupted, and for what was done before.
  Returns: the parameters and the number of steps, of which max_seconds allows as many as fit (0: all).
  """
  key = purpose_key(seed, 'dataset_classifier')
  batch = source.read(np.arange(batch_size) % source.num_examples)
  reach = max(1, batch['image'].shape[1] // 10)

  def optimizer(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))

  def compiled(state: Progress) -> Callable:
    lowered = step_of(module, optimizer(state.num_steps)).lower(*arguments_of(state, batch))
    return xla_options.compiled(lowered, 'the training of the evaluation classifier')

  params = module.init(key, batch['image'][:1])['params']
  state = Progress(0, num_steps, params, optimizer(num_steps).init(params))
  before = _read_progress(kept, state)
  state = before or state
  step = compiled(state)
  if max_seconds and not before:
    allowed = affordable(step, state, batch, max_seconds)
    if allowed < num_steps:
      reduced = f'{allowed:,} of {num_steps:,} steps, which take {max_seconds:g} s'
      print(f'evaluation classifier: {reduced}', flush=True)
      state = state._replace(num_steps=allowed)
      step = compiled(state)
  rng, first, saved_at = np.random.default_rng(seed), state.step, time.monotonic()
  what = 'training the evaluation classifier'
  try:
    with tqdm(total=state.num_steps, initial=first, desc=what, mininterval=1) as bar:
      for number in range(state.num_steps):
        indices = rng.integers(source.num_examples, size=batch_size)
        shift = tuple(rng.integers(-reach, reach + 1, size=2))
        if number < first:
          continue  # Done before; only the draws are repeated.
        batch = source.read(indices)
        images, step_key = shifted(batch['image'], shift), jax.random.fold_in(key, number)
        made = step(state.params, state.opt_state, images, batch['label'], step_key)
        state = Progress(number + 1, state.num_steps, *made)
        bar.update()
        if time.monotonic() - saved_at > SAVED_EVERY_SECONDS:
          _write_progress(kept, state)
          saved_at = time.monotonic()
  except KeyboardInterrupt:
    _write_progress(kept, state)
    raise
  return state.params, state.num_steps


def step_of(module: nn.Module, optimizer: optax.GradientTransformation) -> Callable:
  """(params, opt_state, images, labels, key) -> (params, opt_state), jitted."""

  def loss(params, images, labels, key):
    _, logits = module.apply({'params': params}, images, train=True, rngs={'dropout': key})
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, opt_state, images, labels, key):
    grads = jax.grad(loss)(params, images, labels, key)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  return step


def arguments_of(state: Progress, batch: Mapping[str, np.ndarray]) -> tuple:
  """Those of a step, with some key."""
  return state.params, state.opt_state, batch['image'], batch['label'], jax.random.key(0)


def affordable(
  step: Callable, state: Progress, batch: Mapping[str, np.ndarray], seconds: float
) -> int:
  """How many steps fit into `seconds` as measured here, MIN_STEPS at least and num_steps at most."""
  arguments = arguments_of(state, batch)
  jax.block_until_ready(step(*arguments))  # The first takes longer.
  began = time.perf_counter()
  for _ in range(TIMED_STEPS):
    jax.block_until_ready(step(*arguments))
  fitting = int(seconds * TIMED_STEPS / (time.perf_counter() - began))
  return min(max(fitting, MIN_STEPS), state.num_steps)


def _write_progress(path: Path, state: Progress) -> None:
  content = serialization.to_bytes(jax.device_get(state))
  files.write(path, hashlib.sha256(content).digest() + content)


def _read_progress(path: Path, like: Progress) -> Progress | None:
  """Reads the kept state, or returns None if nothing is whole; `like` has its structure."""
  try:
    content = path.read_bytes()
  except OSError:
    return None
  if hashlib.sha256(content[32:]).digest() != content[:32]:
    print(f'{path}: damaged; the evaluation classifier is trained from the start', flush=True)
    return None
  return Progress(*serialization.from_bytes(like, content[32:]))


def shifted(images: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
  """Images moved by whole pixels, the edge repeated: (N,H,W,C) -> (N,H,W,C)."""
  reach = max(abs(int(d)) for d in shift)
  padded = np.pad(images, [(0, 0), (reach, reach), (reach, reach), (0, 0)], mode='edge')
  top, left = reach + int(shift[0]), reach + int(shift[1])
  return padded[:, top : top + images.shape[1], left : left + images.shape[2]]
