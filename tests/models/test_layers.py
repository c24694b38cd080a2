"""Layers that backbones share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.layers import Dropout


@pytest.mark.parametrize('rate', [0.25, 0.5])
def test_dropout_zeroes_a_share_and_scales_the_rest(rate):
  rows, x = jnp.arange(16), jnp.full((16, 50, 50), 3.0)
  y = Dropout(rate).apply({}, x, rows, rngs={'dropout': jax.random.key(0)})
  assert np.mean(y == 0) == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / x.size))
  np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)
  np.testing.assert_array_equal(Dropout(rate).apply({}, x, None), x)
  np.testing.assert_array_equal(Dropout(1.0).apply({}, x, rows), jnp.zeros_like(x))


def test_masks_of_dropout_belong_to_the_rows():
  x, rngs = jnp.ones((8, 5, 5)), {'dropout': jax.random.key(1)}
  whole = Dropout(0.5).apply({}, x, jnp.arange(8), rngs=rngs)
  part = Dropout(0.5).apply({}, x[:3], jnp.array([6, 1, 4]), rngs=rngs)
  np.testing.assert_array_equal(part, whole[np.array([6, 1, 4])])
  assert len({mask.tobytes() for mask in np.asarray(whole)}) == 8
