"""Objective: a record of functions that the step, the loop and sampling call."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optax

from diffusion_jax.models.latents import Scaling
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Array, CachableNetwork, Network, PyTree

# label (B,) int32, and image (B,H,W,C) uint8 or posterior (B,h,w,2c) float16
Batch = Mapping[str, Array]
Parts = dict[
  str, PyTree
]  # Parameters, or their gradients, by part: 'model' and what else is trained.
Metrics = dict[str, Array]


class DropoutDraws(NamedTuple):
  """The randomness of dropout: its key, and rows (B,) uint32, the numbers of the examples in the batch."""

  key: Array
  rows: Array


class Draws(NamedTuple):
  """The randomness of a step: keys (B,), one an example, of which 0 is spent on x0; that of dropout."""

  keys: Array
  dropout: DropoutDraws


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
  """A loss, the parts that it trains, and the network that comes of it.

  init: () -> the parts at step 0, functions of the seed.
  gradients: (state, frozen, batch, draws, phase) -> gradients of the parts that this phase trains, and
    () float32 metrics: 'loss', and others, of which those that end in 'loss' must be finite.
  optimizers: one a part.
  forward: (parts, *inputs) -> what costs one pass forward; forward_inputs: batch size -> its inputs.
  holdout: (parts, frozen, scaling, batch) -> sums over held-out examples (batch['index'] -1: padding),
    and their 'count'. holdout_metrics: the names of the sums; logged as holdout_NAME.
  averages: name -> decay at each update; previews and held-out metrics take 'ema'. averaged: the parts
    that every average covers.
  frozen: () -> arrays that are not trained, on the host; an argument of the compiled step. Raises:
    InputError for what is not there.
  phase: step, from 1 -> which of the compiled steps it takes. whole_batch: the phases whose gradients are no
    means over examples, so that a batch cannot be taken in passes.
  network: parts -> what sampling and previews call; None: nothing is sampled.
  cachable: parts -> that network for caching.caching_network, where the backbone can do without its blocks.
  network_parts: the parts that `network` looks at.
  reconstruct: (parts, images uint8) -> images uint8, for previews and metrics where nothing is sampled.
  guided: whether the network was trained without labels, too.
  """

  init: Callable[[], Parts]
  gradients: Callable[[TrainState, PyTree, Batch, Draws, str], tuple[Parts, Metrics]]
  optimizers: Mapping[str, optax.GradientTransformation]
  forward: Callable[..., Any]
  forward_inputs: Callable[[int], Sequence[Any]]
  holdout: Callable[[Parts, PyTree, Scaling | None, Batch], Metrics]
  holdout_metrics: tuple[str, ...]
  averages: Mapping[str, Callable[[Array], Array]]
  averaged: tuple[str, ...] = ('model',)
  frozen: Callable[[], PyTree] = dict
  phase: Callable[[int], str] = lambda step: ''
  whole_batch: tuple[str, ...] = ()
  network: Callable[[Parts], Network] | None = None
  cachable: Callable[[Parts], CachableNetwork] | None = None
  network_parts: tuple[str, ...] = ('model',)
  reconstruct: Callable[[Parts, Array], Array] | None = None
  guided: bool = False
