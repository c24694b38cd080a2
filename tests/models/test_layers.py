"""Layers that backbones share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import dit
from diffusion_jax.models.layers import Dense, Dropout, norm_silu


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


def kept_for_backward(function, *arguments):
  """The numbers that the linearised function holds."""
  _, backward = jax.vjp(function, *arguments)
  return sum(x.size for x in jax.tree.leaves(backward) if isinstance(x, jax.Array))


@pytest.mark.parametrize('modulated', [False, True])
def test_norm_silu_is_its_parts_and_keeps_its_inputs_alone(modulated):
  x = 3 + jax.random.normal(jax.random.key(0), (2, 4, 4, 64))
  vectors = tuple(jax.random.normal(jax.random.key(1), (2, 2, 64))) if modulated else ()
  module = norm_silu(1e-5, jnp.float32, 'norm')
  params = {'scale': jnp.linspace(0.5, 2, 64), 'bias': jnp.linspace(-1, 1, 64)}
  init = module.init(jax.random.key(2), x)['params']
  assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, params)

  def found(params, x, *vectors):
    return module.apply({'params': params}, x, *vectors)

  groups = np.asarray(x, np.float64).reshape(2, 16, 32, 2)
  deviations = groups - groups.mean((1, 3), keepdims=True)
  h = deviations / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
  h = h.reshape(x.shape) * np.asarray(params['scale']) + np.asarray(params['bias'])
  if modulated:
    shift, scale = (np.asarray(v)[:, None, None] for v in vectors)
    h = h * (1 + scale) + shift
  expected = h / (1 + np.exp(-h))
  np.testing.assert_allclose(found(params, x, *vectors), expected, atol=2e-5)
  inputs = x.size + 2 * 64 + sum(v.size for v in vectors)
  assert kept_for_backward(found, params, x, *vectors) <= inputs


def test_a_block_of_a_dit_keeps_no_value_of_a_norm_or_of_gelu():
  x, (shift, scale) = jnp.ones((2, 16, 32)), jnp.ones((2, 2, 32))
  assert kept_for_backward(dit.gelu, x) <= x.size
  assert kept_for_backward(dit.modulated_norm, x, shift, scale) <= x.size + 2 * shift.size


def test_on_one_device_the_gradient_of_a_kernel_sums_over_one_dimension():
  """Over examples and tokens apart it would need a transposed copy on a CPU."""
  layer, x = Dense(5), jnp.ones((2, 3, 4))
  params = layer.init(jax.random.key(0), x)
  gradient = jax.make_jaxpr(jax.grad(lambda params: jnp.sum(layer.apply(params, x) ** 2)))(params)
  products = [e for e in gradient.eqns if e.primitive.name == 'dot_general']
  contracted = [e.params['dimension_numbers'][0][0] for e in products]
  assert len(products) >= 2 and all(len(dimensions) == 1 for dimensions in contracted)
