"""What stays in float32 when activations are bfloat16."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from diffusion_jax.models import discriminator, dit, unet_blocks, vae
from diffusion_jax.models.attention import attend
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.models.layers import norm_silu, spread
from tests.models.test_backbones import NAMES, SMALL, build, inputs, shaken

NORMS = {
  'dit': dit.layer_norm(jnp.bfloat16),
  'unet': unet_blocks.group_norm(1e-6, jnp.bfloat16, 'norm'),
  'norm_silu': norm_silu(1e-6, jnp.bfloat16, 'norm'),
  'vae': vae.norm(jnp.bfloat16, 'norm'),
  'discriminator': discriminator.group_norm(jnp.bfloat16, 'norm'),
}


@pytest.mark.parametrize('name', NORMS)
def test_statistics_of_norms_are_float32(name, monkeypatch):
  """Against NumPy in float64; a mean of 3 in bfloat16 is off by 1% of the deviation or more."""
  monkeypatch.setattr(nn, 'silu', lambda x: x)  # It rounds once more.
  x = 3 + np.random.default_rng(0).normal(size=(2, 8, 8, 64))
  x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
  count = {'dit': 1, 'discriminator': 8}.get(name, 32)
  groups = x.reshape(128 if name == 'dit' else 2, -1, count, 64 // count)
  axes = (1, 3)
  mean, variance = groups.mean(axes, keepdims=True), groups.var(axes, keepdims=True)
  expected = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)
  norm = NORMS[name].clone()
  x = jnp.asarray(x, jnp.bfloat16)
  found = norm.apply(norm.init(jax.random.key(0), x), x)
  assert found.dtype == jnp.bfloat16
  # Half a unit in the last of 8 bits.
  np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-4)


def test_softmax_is_float32():
  """Logits around 80, where bfloat16 has steps of 0.5: against NumPy in float64."""
  tokens, width = 64, 16
  q, k, v = np.random.default_rng(0).normal(size=(3, 1, tokens, 1, width))
  q[..., 0], k[..., 0] = 16.0, 20.0
  qkv = jnp.asarray(np.concatenate([q, k, v], axis=2)[:, :, :, None], jnp.bfloat16)
  q, k, v = np.asarray(qkv, np.float64).reshape(tokens, 3, width).transpose(1, 0, 2)
  logits = q @ k.T / np.sqrt(width)
  assert logits.mean() > 70
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  expected = weights / weights.sum(-1, keepdims=True) @ v
  found = np.asarray(attend(qkv), np.float64)[0]
  assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize('name', NAMES)
def test_the_condition_is_that_of_float32(name):
  """bfloat16 has 1000 only for 998, 999 and 1000; a radian between them turns the sinusoids."""
  x, _, condition = inputs()
  arguments = (x, jnp.asarray([997.0, 998.0, 999.0]), {'label': 0 * condition['label']})
  exact, found = (build(name, dtype=dtype, **SMALL[name]) for dtype in (jnp.float32, jnp.bfloat16))
  shapes = jax.eval_shape(exact.init, jax.random.key(1), *arguments)['params']
  params = shaken(jax.tree.map(lambda p: jnp.zeros(p.shape), shapes), scale=0.3)

  def condition(module):
    def embed(params):  # The rest of the network is not computed.
      only = {'capture_intermediates': lambda module, _: module.name == 'condition'}
      _, seen = module.apply({'params': params}, *arguments, **only)
      return seen['intermediates']['condition']['__call__'][0]

    return jax.jit(embed)(params)

  exact, found = condition(exact), condition(found)
  assert np.abs(exact[1] - exact[2]).max() > 0.1
  np.testing.assert_array_equal(found, exact, strict=True)


def sums(jaxpr):
  """(primitive, dtype, terms) of every sum in a jaxpr and those inside it."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name in ('reduce_sum', 'cumsum', 'reduce_window_sum', 'scatter-add'):
      source, out = equation.invars[0].aval, equation.outvars[0].aval
      if name == 'scatter-add':  # Terms are the updates, and the result is as large as the operand.
        source = equation.invars[2].aval
      yield name, source.dtype, source.size // max(out.size, 1)
    for inner in jaxprs_in_params(equation.params):
      yield from sums(inner)


BATCH = 64
SIZES = dict(num_classes=1, dtype=jnp.bfloat16)  # Two rows of the label table, for 64 labels.
MODULES = {name: build(name, **SIZES, **SMALL[name]) for name in NAMES}
MODULES['unet, conditioned by a sum'] = build(
  'unet', **SIZES, **SMALL['unet'], scale_shift_norm=False, resample='residual'
)
MODULES['vae'] = vae.AutoencoderKL(
  channels=32,
  channel_mult=(1, 2),
  num_res_blocks=1,
  z_channels=3,
  embed_channels=3,
  dtype=jnp.bfloat16,
)
MODULES['discriminator'] = PatchDiscriminator(8, 2, jnp.bfloat16)
DIFFUSION = (jnp.zeros((BATCH, 8, 8, 1)), jnp.zeros(BATCH), {'label': jnp.zeros(BATCH, jnp.int32)})
INPUTS = {
  'vae': (jnp.zeros((BATCH, 16, 16, 3)), jnp.zeros((BATCH, 8, 8, 3))),
  'discriminator': (jnp.zeros((BATCH, 32, 32, 3)),),
}


@pytest.mark.parametrize('name', MODULES)
def test_long_sums_are_float32(name):
  """Statistics on the way forward; on the way back gradients of all that is broadcast or looked up."""
  module, arguments = MODULES[name], INPUTS.get(name, DIFFUSION)
  params = jax.eval_shape(module.init, jax.random.key(0), *arguments)['params']

  def loss(params):
    out = module.apply({'params': params}, *arguments)
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(out))

  found = list(sums(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert sum(terms >= 32 for _, _, terms in found) > 10
  assert not [entry for entry in found if entry[1] == jnp.bfloat16 and entry[2] > 16]


@pytest.mark.parametrize('lead, terms', [((), 2**16), ((4,), 2**12)])
def test_what_is_broadcast_has_the_gradient_summed_in_float32(lead, terms):
  """A bias over 65,536 positions, and gates of 4 examples over 4,096, against NumPy in float64."""
  shape = (*(lead or (2,)), terms // (1 if lead else 2), 8)
  gradient = 1 + np.random.default_rng(0).normal(
    size=shape
  )  # Beside 65,536 bfloat16 has only 256 s.
  gradient = jnp.asarray(gradient, jnp.bfloat16)
  values = jnp.zeros((*lead, 8))
  out, back = jax.vjp(lambda values: spread(values, gradient), values)
  assert out.dtype == jnp.bfloat16
  axes = tuple(range(len(lead), len(shape) - 1))
  expected = np.asarray(gradient, np.float64).sum(axes)
  np.testing.assert_allclose(back(gradient)[0], expected, rtol=1e-5)
