"""Layers that backbones share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import layers
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


@pytest.mark.parametrize('heads, width', [(3, 16), (1, 40)])
def test_attention_by_head_is_attention(monkeypatch, heads, width):
  """Where one CPU has many tokens: values and gradients of the product over all heads."""
  qkv = jax.random.normal(jax.random.key(0), (2, layers.BY_HEAD_FROM, 3, heads, width))
  weights = jax.random.normal(jax.random.key(1), (2, layers.BY_HEAD_FROM, heads * width))

  def run(qkv):
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(weights * layers.attend(x))))(qkv)

  assert layers._is_one_cpu()
  assert 'scan' in str(jax.make_jaxpr(lambda x: layers.attend(x))(qkv))
  found = run(qkv)
  monkeypatch.setattr(layers, 'BY_HEAD_FROM', 10**9)
  assert 'scan' not in str(jax.make_jaxpr(lambda x: layers.attend(x))(qkv))
  expected = run(qkv)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_logits_by_head_are_never_rounded_to_bfloat16():
  """The product itself is asked for in float32: what comes out of it in bfloat16 has lost its digits."""
  qkv = jnp.zeros((1, layers.BY_HEAD_FROM, 3, 1, 8), jnp.bfloat16)
  (loop,) = [e for e in jax.make_jaxpr(layers.attend)(qkv).eqns if e.primitive.name == 'scan']
  (block,) = [e for e in loop.params['jaxpr'].eqns if 'jaxpr' in e.params]
  products = [e for e in block.params['jaxpr'].eqns if e.primitive.name == 'dot_general']
  logits, weighted = (product.outvars[0].aval.dtype for product in products)
  assert logits == jnp.float32 and weighted == jnp.bfloat16
