"""Which implementation computes attention, and that they compute the same."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import attention
from diffusion_jax.models.attention import attend, chosen, require_cudnn, widest_head

HOPPER = types.SimpleNamespace(compute_capability='9.0')
AMPERE = types.SimpleNamespace(compute_capability='8.6')
VOLTA = types.SimpleNamespace(compute_capability='7.0')
ROCM = types.SimpleNamespace(compute_capability='gfx90a')


def test_the_widest_head_is_that_of_the_device():
  assert [widest_head(device) for device in (HOPPER, AMPERE, VOLTA, ROCM)] == [256, 128, 0, 0]
  assert widest_head(jax.devices('cpu')[0]) == 0


@pytest.mark.parametrize(
  'expected, length, width, dtype, device',
  [
    ('cudnn', 256, 64, 'bfloat16', HOPPER),
    ('cudnn', 128, 256, 'bfloat16', HOPPER),
    ('cudnn', 256, 128, 'float16', AMPERE),
    ('xla', 256, 136, 'bfloat16', AMPERE),
    ('xla', 256, 512, 'bfloat16', HOPPER),
    ('xla', 256, 68, 'bfloat16', HOPPER),
    ('xla', 256, 64, 'float32', HOPPER),
    ('xla', 127, 64, 'bfloat16', HOPPER),
    ('xla', 256, 64, 'bfloat16', VOLTA),
    ('xla', 256, 64, 'bfloat16', ROCM),
  ],
)
def test_auto_takes_cudnn_where_it_can(expected, length, width, dtype, device):
  arguments = length, width, dtype, device
  assert chosen('auto', *arguments) == expected
  assert chosen('xla', *arguments) == 'xla' and chosen('cudnn', *arguments) == 'cudnn'


def test_cudnn_is_refused_before_it_is_traced_where_it_cannot_run():
  with pytest.raises(ValueError, match=r'got .cudnn. with 160 channels a head, .* of 8 up to 128'):
    require_cudnn('cudnn', 160, jnp.bfloat16, widest_head(AMPERE))
  require_cudnn('cudnn', 160, jnp.bfloat16, widest_head(HOPPER))
  require_cudnn('auto', 513, jnp.float32, 0)
  if jax.default_backend() == 'cpu':
    with pytest.raises(
      ValueError, match="attention: got 'cudnn', allowed 'auto', 'xla' on this device"
    ):
      jax.eval_shape(lambda x: attend(x, 'cudnn'), jnp.zeros((1, 4, 3, 1, 8), jnp.bfloat16))


@pytest.mark.parametrize('heads, width', [(3, 16), (1, 40), (8, 8)])  # 2, 2 and 8 at a time.
def test_attention_by_head_is_attention(monkeypatch, heads, width):
  """Where one CPU has many tokens: values and gradients of the product over all heads."""
  qkv = jax.random.normal(jax.random.key(0), (2, attention.BY_HEAD_FROM, 3, heads, width))
  weights = jax.random.normal(jax.random.key(1), (2, attention.BY_HEAD_FROM, heads * width))

  def run(qkv):
    return jax.jit(jax.value_and_grad(lambda x: jnp.sum(weights * attend(x))))(qkv)

  assert attention._is_one_cpu()
  assert 'scan' in str(jax.make_jaxpr(lambda x: attend(x))(qkv))
  found = run(qkv)
  monkeypatch.setattr(attention, 'BY_HEAD_FROM', 10**9)
  assert 'scan' not in str(jax.make_jaxpr(lambda x: attend(x))(qkv))
  expected = run(qkv)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@pytest.mark.parametrize('length', [4, attention.BY_HEAD_FROM])
def test_gradients_of_queries_keys_and_values_are_joined_without_padding(length):
  """Indexing would pad each to the size of all three, and add."""
  gradient = jax.grad(lambda x: jnp.sum(attend(x, 'xla')))
  found = str(jax.make_jaxpr(gradient)(jnp.ones((2, length, 3, 1, 8))))
  assert 'concatenate' in found and 'pad[' not in found and 'scatter' not in found


def test_logits_by_head_are_never_rounded_to_bfloat16():
  """The product itself is asked for in float32: what comes out of it in bfloat16 has lost its digits."""
  qkv = jnp.zeros((1, attention.BY_HEAD_FROM, 3, 1, 8), jnp.bfloat16)
  (loop,) = [e for e in jax.make_jaxpr(attend)(qkv).eqns if e.primitive.name == 'scan']
  (block,) = [e for e in loop.params['jaxpr'].eqns if 'jaxpr' in e.params]
  products = [e for e in block.params['jaxpr'].eqns if e.primitive.name == 'dot_general']
  logits, weighted = (product.outvars[0].aval.dtype for product in products)
  assert logits == jnp.float32 and weighted == jnp.bfloat16
