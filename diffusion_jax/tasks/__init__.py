"""What is trained, one a file: its state, step, held-out metrics and preview.

A task is a file that defines `build(experiment) -> Task`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from diffusion_jax.evaluation.types import FeatureSet
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.types import PyTree


class Task(Protocol):
  """abstract_state: shapes, dtypes and shardings."""

  abstract_state: PyTree

  def require(self) -> None:
    """Raises: InputError for what only training needs and is not there."""

  def init_state(self) -> PyTree:
    """The state at step 0, a function of the seed."""

  def compile_step(self, start: int) -> Callable[[int, PyTree, Any], tuple[PyTree, Mapping]]:
    """(step, state, batch) -> (state, metrics), compiled ahead of time; the state is donated."""

  def measure(self, state: PyTree) -> dict[str, float]:
    """Metrics of the averaged parameters over the held-out images, each counted once."""

  def features(self, state: PyTree, evaluator: Evaluator, count: int) -> FeatureSet:
    """Of what the averaged parameters make: `count` samples, or reconstructions of held-out images."""

  def preview(self, state: PyTree) -> np.ndarray:
    """One picture (H', W', 3) uint8."""

  def forward(self, params: PyTree, *inputs: Any) -> Any:
    """What one image costs to describe: the network's pass forward."""

  def forward_inputs(self, batch_size: int) -> Sequence[Any]:
    """ShapeDtypeStructs of forward's inputs."""


def task_of(experiment: Experiment) -> Task:
  """The task of config.task."""
  return importlib.import_module(f'{__name__}.{experiment.config.task}').build(experiment)
