"""Array aliases, the small records that rooms hand each other, and the protocols they keep."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Array = jax.Array
PyTree = Any


class NoiseLevel(NamedTuple):
  """Coefficients of x_t = alpha * x0 + sigma * eps."""

  alpha: Array
  sigma: Array


class Prediction(NamedTuple):
  """A network's output as estimates of the parts of x_t, all (B,H,W,C) float32.

  variance: where the network places the variance of the reverse step, 0 at the posterior's and 1 at
  that of the forward step, on a logarithmic scale and not bounded by them; None if it does not say.
  What that amounts to depends on the step, so samplers turn it into a variance.
  """

  x0: Array
  eps: Array
  variance: Array | None = None


Condition = dict[str, Array]  # 'label' (B,) int32; others (B,) float32, where an objective has them
Network = Callable[
  [Array, Array, Condition], Array
]  # (input, network time (B,), condition) -> output
CachableNetwork = Callable[
  [Array, Array, Condition, Array | None], tuple[Array, Array]
]  # Also what the blocks add to the tokens, or None to run them -> output, and what they added
Denoiser = Callable[[Array, Array], Prediction]  # (x_t, t) -> Prediction


class NoiseSchedule(Protocol):
  """Noise as a function of t in [0, 1]; 0 is data, 1 is noise.

  num_timesteps: entries of its table; 0: continuous. time_at: log SNR -> t, the inverse. network_time:
  t as the network sees it. snap: t in (0, 1) -> a time that can be trained on.
  """

  num_timesteps: int

  def __call__(self, t: Array) -> NoiseLevel: ...

  def time_at(self, log_snr: Array) -> Array: ...

  def network_time(self, t: Array) -> Array: ...

  def snap(self, t: Array) -> Array: ...


Spacing = Callable[
  [NoiseSchedule, int], np.ndarray
]  # (schedule, num_steps) -> (num_steps + 1,) times


class TimeSampling(Protocol):
  """The distribution of training times, in (0, 1]."""

  def __call__(self, key: Array, shape: Sequence[int], schedule: NoiseSchedule) -> Array: ...


class Sampler(Protocol):
  """One step of a reverse process from time t to time s < t.

  init: what the first step carries; times (N+1,), noise first, are those of all steps. evaluations: calls of
  the denoiser in num_steps steps.
  """

  def init(self, x_T: Array, times: np.ndarray) -> PyTree: ...

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: PyTree
  ) -> tuple[Array, PyTree]: ...

  def evaluations(self, num_steps: int) -> int: ...


class Backbone(Protocol):
  """A Flax module: x (B,H,W,C), network time (B,), condition -> (B,H,W,C), or 2C with learned variance.

  It sows hidden states as 'hidden' into the collection 'intermediates', for those who ask for it. One with
  dropout may take rows (B,), the numbers of the examples in the batch, as a keyword: with masks that depend on
  them, config.train.accumulate changes nothing.
  """

  def __call__(self, x: Array, time: Array, condition: Condition, *, train: bool) -> Array: ...


class DataSource(Protocol):
  """Random access to one split of a data set; it has no order of its own."""

  num_examples: int
  element: dict[str, jax.ShapeDtypeStruct]
  label_names: Sequence[str]
  fingerprint: str

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


def element_of(
  shape: Sequence[int], name: str = 'image', dtype: Any = np.uint8
) -> dict[str, jax.ShapeDtypeStruct]:
  """DataSource.element of examples of this shape with a label each."""
  label = jax.ShapeDtypeStruct((), np.int32)
  return {name: jax.ShapeDtypeStruct(tuple(shape), dtype), 'label': label}
