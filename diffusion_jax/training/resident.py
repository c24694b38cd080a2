"""Training data that live on the devices: a batch is gathered inside the step, by number."""

import numpy as np
from jax import lax
from jax.sharding import Mesh

from diffusion_jax.runtime.mesh import batch_sharding, replicated, to_devices
from diffusion_jax.types import Array, DataSource


def load(source: DataSource, mesh: Mesh) -> dict[str, Array]:
  """All examples, a copy on every device: each name of source.element -> (N, ...)."""
  return to_devices(source.read(np.arange(source.num_examples)), replicated(mesh))


def gather(data: dict[str, Array], number: Array, mesh: Mesh) -> dict[str, Array]:
  """number (B,) int32 -> the batch of these examples, each device's part from its own copy."""
  batch = {name: values[number] for name, values in data.items()}
  return lax.with_sharding_constraint(batch, batch_sharding(mesh))
