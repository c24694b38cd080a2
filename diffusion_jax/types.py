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
  """What a network's output says about x_t: all (B,H,W,C) float32.

  variance: where the network places the variance of the reverse step, 0 at the posterior's and 1 at
  that of the forward step, on a logarithmic scale and not bounded by them; None if it does not say.
  What that amounts to depends on the step, so samplers turn it into a variance.
  """

  x0: Array
  eps: Array
  variance: Array | None = None


Denoiser = Callable[[Array, Array], Prediction]  # (x_t, t) -> Prediction


class NoiseSchedule(Protocol):
  """Noise as a function of t in [0, 1]; 0 is data, 1 is noise."""

  def __call__(self, t: Array) -> NoiseLevel: ...

  def network_time(self, t: Array) -> Array: ...

  def sample_t(self, key: Array, shape: Sequence[int]) -> Array: ...

  def grid(self, num_steps: int, spacing: str) -> np.ndarray: ...


class Sampler(Protocol):
  """One step of a reverse process from time t to time s < t."""

  def init(self, x_T: Array) -> PyTree: ...

  def step(
    self, keys: Array, x_t: Array, t: Array, s: Array, denoise: Denoiser, carry: PyTree
  ) -> tuple[Array, PyTree]: ...


class Backbone(Protocol):
  """A Flax module: x (B,H,W,C), network time (B,), labels y (B,) int32 -> (B,H,W,C)."""

  def __call__(self, x: Array, time: Array, y: Array, *, train: bool) -> Array: ...


class DataSource(Protocol):
  """Random access to one split of a data set; it has no order of its own."""

  num_examples: int
  element: dict[str, jax.ShapeDtypeStruct]
  label_names: Sequence[str]
  fingerprint: str

  def read(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...
