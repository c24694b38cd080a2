"""Latents: normalised and back, and decoded in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.latents import Scaling, in_batches


@pytest.mark.parametrize('shards, batch_size', [(1, 24), (1, 5), (2, 5), (4, 1), (3, 100), (8, 2)])
def test_in_batches_changes_nothing(shards, batch_size):
  x = jax.random.normal(jax.random.key(0), (24, 3, 2))
  seen = []

  def function(rows):
    seen.append(len(rows))
    return jnp.sin(rows).sum(axis=-1)

  found = jax.jit(lambda x: in_batches(function, x, batch_size=batch_size, shards=shards))(x)
  np.testing.assert_allclose(found, np.sin(x).sum(axis=-1), atol=1e-6)
  assert max(seen) <= max(shards * batch_size, 24 * (batch_size >= 24))


def test_scaling_and_back():
  rng = np.random.default_rng(0)
  z = rng.normal([3.0, -1.0], [2.0, 0.5], (1000, 2))
  scaling = Scaling(jnp.float32([3.0, -1.0]), jnp.float32(0.5))
  x0 = scaling.normalise(z)
  np.testing.assert_allclose(x0, (z - [3.0, -1.0]) / 2, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(scaling.restore(x0), z, rtol=1e-5, atol=1e-6)
