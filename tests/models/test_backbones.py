"""The contract of all backbones, their published sizes, and what their options do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import base
from diffusion_jax.config.plugins import make_plugin, plugin_names
from diffusion_jax.models.dit import patchify, position_embedding, unpatchify
from diffusion_jax.models.layers import QKV, Dense, sinusoidal_embedding
from diffusion_jax.runtime.cost import flops, num_parameters

NAMES = plugin_names('models')
SMALL = {
  'dit': dict(hidden_size=32, depth=2, num_heads=2),
  'unet': dict(channels=32, num_res_blocks=1, num_heads=2),
}

OTHER_UNET = dict(resample='residual', head_channels=16, scale_shift_norm=False, frequency_shift=1)
CASES = [
  *((name, {}, 10) for name in NAMES),
  ('dit', {}, 0),
  pytest.param('unet', {}, 0, marks=pytest.mark.full),
  pytest.param('unet', OTHER_UNET, 10, marks=pytest.mark.slow),
]


def build(name, *, out_channels=1, num_classes=10, dtype=jnp.float32, **changes):
  options = {**base.get_config().model[name].to_dict(), **changes}
  derived = dict(out_channels=out_channels, num_classes=num_classes, dtype=dtype)
  return make_plugin('models', name, **options, **derived)


def inputs(shape=(3, 8, 8, 1)):
  x = jax.random.normal(jax.random.key(0), shape)
  return x, jnp.asarray([0.0, 500.0, 999.0])[: len(x)], {'label': jnp.arange(len(x))}


def shaken(params, scale=0.05):
  """Parameters away from the zeros of the initialisation."""
  keys = iter(jax.random.split(jax.random.key(7), 1000))
  return jax.tree.map(lambda p: p + scale * jax.random.normal(next(keys), p.shape), params)


@pytest.mark.parametrize('name, changes, num_classes', CASES)
def test_contract(name, changes, num_classes):
  module = build(name, num_classes=num_classes, out_channels=2, **SMALL[name], **changes)
  x, time, condition = inputs()
  params = jax.jit(module.init)(jax.random.key(1), x, time, condition)['params']
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  traces = []

  def apply(params, x, time, condition):
    traces.append(1)
    return module.apply({'params': params}, x, time, condition)

  jitted = jax.jit(apply)
  np.testing.assert_array_equal(jitted(params, x, time, condition), 0)  # Starts at zero.
  params = shaken(params)
  out = jitted(params, x, time, condition)
  jitted(params, 2 * x, time, condition)
  assert out.shape == (3, 8, 8, 2) and out.dtype == jnp.float32 and len(traces) == 1
  others = jnp.asarray([2, 1, 2])
  among_others = jitted(params, x[others], time[others], {'label': others})[1]
  np.testing.assert_allclose(among_others, out[1], atol=1e-4)  # Examples do not see each other.
  assert not np.allclose(jitted(params, x, time + 100, condition), out, atol=1e-3)
  depends_on_label = not np.allclose(
    jitted(params, x, time, {'label': condition['label'] + 1}), out, atol=1e-4
  )
  assert depends_on_label == (num_classes > 0)
  if num_classes:
    jitted(params, x, time, {'label': jnp.full(3, num_classes)})  # The null label has a row.


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[pytest.mark.slow] if n == 'unet' else []) for n in NAMES]
)
def test_further_conditions_are_embedded_as_the_time_is(name):
  """They add parameters of their own, and leave those of the rest as they are without them."""
  module = build(name, **SMALL[name])
  x, time, condition = inputs()
  both = {**condition, 'scale': jnp.asarray([1.0, 2.0, 4.0])}
  key = jax.random.key(1)
  plain = jax.jit(module.init)(key, x, time, condition)['params']
  params = jax.jit(module.init)(key, x, time, both)['params']
  added = set(params['condition']) - set(plain['condition'])
  assert added == {'scale_in', 'scale_out'}
  rest = {**params, 'condition': {k: params['condition'][k] for k in plain['condition']}}
  jax.tree.map(np.testing.assert_array_equal, rest, plain)
  params, apply = shaken(params), jax.jit(module.apply)
  out = apply({'params': params}, x, time, both)
  other = apply({'params': params}, x, time, {**both, 'scale': jnp.asarray([1.0, 2.0, 5.0])})
  differs = np.abs(out - other).max(axis=(1, 2, 3)) > 1e-4
  np.testing.assert_array_equal(differs, [False, False, True])


@pytest.mark.parametrize('name, shape', [('dit', (2, 3, 16, 32)), ('unet', (3, 4, 4, 64))])
def test_hidden_states_on_request(name, shape):
  """Of every block of a DiT, of the middle of a UNet; asking for them changes no output."""
  module = build(name, **SMALL[name])
  variables = jax.jit(module.init)(jax.random.key(1), *inputs())
  assert set(variables) == {'params'}
  params = shaken(variables['params'])
  out, seen = jax.jit(functools.partial(module.apply, mutable=['intermediates']))(
    {'params': params}, *inputs()
  )
  (hidden,) = jax.tree.leaves(seen)
  assert hidden.shape == shape and np.all(np.std(hidden, axis=-1) > 0)
  np.testing.assert_array_equal(out, jax.jit(module.apply)({'params': params}, *inputs()))


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_activations(name):
  module = build(name, dtype=jnp.bfloat16, **SMALL[name])
  x, time, condition = inputs()
  params = shaken(jax.jit(module.init)(jax.random.key(1), x, time, condition)['params'])
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  out = jax.jit(module.apply)({'params': params}, x, time, condition)
  exact = jax.jit(build(name, **SMALL[name]).apply)({'params': params}, x, time, condition)
  assert out.dtype == jnp.float32
  assert np.any(out != out.astype(jnp.bfloat16))  # The last layer does not round.
  assert 0 < np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
  'width, depth, heads, millions, gflop',
  [(384, 12, 6, 32.96, 12.1), (768, 12, 12, 130.51, 46.0), (1024, 24, 16, 458.1, 161.4)],
)
def test_dit_has_the_published_sizes(width, depth, heads, millions, gflop):
  """DiT-S/B/L/2 on 32x32x4 with learned variance, the frozen positions counted in."""
  module = build(
    'dit',
    out_channels=8,
    num_classes=1000,
    patch_size=2,
    hidden_size=width,
    depth=depth,
    num_heads=heads,
  )
  arguments = (jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)})
  params = jax.eval_shape(module.init, jax.random.key(0), *arguments)['params']
  assert (num_parameters(params) + 256 * width) / 1e6 == pytest.approx(millions, abs=0.05)
  count = flops(lambda p, *a: module.apply({'params': p}, *a), params, *arguments)
  assert count / 1e9 == pytest.approx(gflop, rel=0.01)


def test_qkv_keeps_heads_apart_and_is_drawn_as_one_matrix():
  """(d, 3, heads, head width): the very numbers, and the product, of a dense layer of 3d features."""
  layer, dense = QKV(4, jnp.float32), Dense(96)
  x, key = jax.random.normal(jax.random.key(0), (2, 5, 32)), jax.random.key(1)
  params, flat = (jax.jit(module.init)(key, x)['params'] for module in (layer, dense))
  assert jax.tree.map(jnp.shape, params) == {'kernel': (32, 3, 4, 8), 'bias': (3, 4, 8)}
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), params, flat)
  flat['bias'] = jax.random.normal(key, (96,))
  params['bias'] = flat['bias'].reshape(3, 4, 8)
  out, wanted = (jax.jit(m.apply)({'params': p}, x) for m, p in ((layer, params), (dense, flat)))
  np.testing.assert_array_equal(out, wanted.reshape(2, 5, 3, 4, 8))


@pytest.mark.parametrize('name', NAMES)
def test_qkv_of_backbones_has_an_axis_of_heads(name):
  module = build(name, **SMALL[name])
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs())['params']
  found = {path[-1]: x.shape[-3:] for path, x in flatten_dict(shapes).items() if path[-2] == 'qkv'}
  width = 32 if name == 'dit' else 64
  assert found == {'kernel': (3, 2, width // 2), 'bias': (3, 2, width // 2)}


def test_dit_patches_are_ordered_row_column_channel():
  x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  patches = patchify(x, 2)
  assert patches.shape == (2, 6, 12)
  np.testing.assert_array_equal(patches[0, 4], x[0, 2:4, 2:4].reshape(-1))
  np.testing.assert_array_equal(unpatchify(patches, 2, 4, 6), x)


def test_dit_positions_are_column_first_then_row():
  table = position_embedding(3, 5, 8)
  row, column = 2, 4
  found = table[row * 5 + column]
  frequencies = 1 / 10_000 ** (np.arange(2) / 2)
  expected = [f(x * frequencies) for x in (column, row) for f in (np.sin, np.cos)]
  np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-6)


def test_sinusoids_are_cos_then_sin():
  found = sinusoidal_embedding(jnp.asarray([3.0]), 4)[0]
  np.testing.assert_allclose(found, [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)], rtol=1e-5)


def test_unet_dropout_acts_only_in_training():
  module = build('unet', dropout=0.5, **SMALL['unet'])
  x, time, condition = inputs()
  params = shaken(jax.jit(module.init)(jax.random.key(1), x, time, condition)['params'])

  @functools.partial(jax.jit, static_argnums=0)
  def apply(train, seed):
    rngs = {'dropout': jax.random.key(seed)}
    return module.apply({'params': params}, x, time, condition, train=train, rngs=rngs)

  np.testing.assert_array_equal(apply(False, 0), apply(False, 1))
  assert not np.allclose(apply(True, 0), apply(True, 1))


def test_unet_attention_is_where_it_was_asked_for():
  module = build('unet', attention_resolutions=(8,), **SMALL['unet'])
  params = jax.eval_shape(module.init, jax.random.key(0), *inputs())['params']
  found = sorted(name for name in params if name.endswith('attention'))
  levels = ['down_0_0_attention', 'mid_attention', 'up_0_0_attention', 'up_0_1_attention']
  assert found == levels


@pytest.mark.parametrize(
  'name, changes, message',
  [
    ('dit', dict(patch_size=3), 'patch_size: got 3, allowed for 8x8 images'),
    ('dit', dict(num_heads=5), 'hidden_size: got 384, allowed multiples of num_heads 5'),
    ('dit', dict(depth=0), 'depth: got 0'),
    ('unet', dict(channels=48), 'channels: got 48'),
    ('unet', dict(channel_mult=(1, 2, 2, 2, 2)), 'channel_mult: got 5 levels'),
    ('unet', dict(attention_resolutions=(16,)), 'attention_resolutions: got'),
    ('unet', dict(dropout=1.0), 'dropout: got'),
  ],
)
def test_sizes_that_do_not_fit(name, changes, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(build(name, **changes).init, jax.random.key(0), *inputs())
