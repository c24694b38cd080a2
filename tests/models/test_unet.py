"""The UNets of DDPM and ADM: published sizes, diffusers' outputs, and what each option does."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from diffusion_jax.models import unet
from diffusion_jax.models.layers import sinusoidal_embedding
from diffusion_jax.models.unet_blocks import average_pool, nearest_upsample
from diffusion_jax.runtime.cost import flops, num_parameters, saved_for_backward
from tests.fixtures import make_unet_parity
from tests.fixtures.parity_weights import values, weights
from tests.pretrained.unet_diffusers import convert
from tests.support.alone import alone

DDPM = dict(
  scale_shift_norm=False,
  resample='conv',
  num_heads=1,
  head_channels=0,
  frequency_shift=1,
  norm_epsilon=1e-6,
)
ADM = dict(
  scale_shift_norm=True,
  resample='residual',
  num_heads=4,
  head_channels=0,
  frequency_shift=0,
  norm_epsilon=1e-5,
)
SMALL = dict(channels=32, num_res_blocks=1, attention_resolutions=(4,))
RECORDED = Path(__file__).parents[1] / 'fixtures' / 'unet_parity.npz'
PARITY = {
  'ddpm': (dict(**DDPM), 0),
  'adm': ({**ADM, 'head_channels': 16}, 10),
}


def build(*, out_channels=3, num_classes=0, dtype=jnp.float32, **changes):
  options = {**base.get_config().model.unet.to_dict(), **changes}
  return unet.UNet(**options, out_channels=out_channels, num_classes=num_classes, dtype=dtype)


def inputs(side=8, batch=2, channels=3):
  x = jax.random.normal(jax.random.key(0), (batch, side, side, channels))
  return x, jnp.linspace(1, 999, batch), {'label': jnp.arange(batch)}


def drawn(shapes):
  """Parameters without the zeros of the initialisation, which hide the blocks."""
  rng = np.random.default_rng(7)

  def draw(p):  # Norm gains, and the biases with them, are near 1.
    return rng.normal(len(p.shape) == 1, 0.1, p.shape).astype(np.float32)

  return jax.tree.map(draw, shapes)


def abstract(module, side):
  arguments = inputs(side, batch=1)
  return jax.eval_shape(module.init, jax.random.key(0), *arguments)['params'], arguments


@pytest.mark.parametrize(
  'options, side, out_channels, num_classes, published, unit',
  [
    # Dhariwal & Nichol 2021; our label table has one row more, 1024 parameters.
    (
      dict(**ADM, channels=256, channel_mult=(1, 1, 2, 3, 4), attention_resolutions=(32, 16, 8)),
      128,
      6,
      1000,
      421.53,
      0.01,
    ),
    # Ho et al. 2020, Appendix B: 114M at 256 and 35.7M at 32 pixels.
    (
      dict(**DDPM, channels=128, channel_mult=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,)),
      256,
      3,
      0,
      113.7,
      0.1,
    ),
    (
      dict(**DDPM, channels=128, channel_mult=(1, 2, 2, 2), attention_resolutions=(16,)),
      32,
      3,
      0,
      35.7,
      0.1,
    ),
    # The reference project's UNet for 128 pixels.
    (
      dict(**DDPM, channels=128, channel_mult=(1, 2, 2, 4), attention_resolutions=(32, 16)),
      128,
      3,
      0,
      74.05,
      0.01,
    ),
  ],
  ids=['adm-128', 'ddpm-256', 'ddpm-32', 'project-128'],
)
def test_published_sizes(options, side, out_channels, num_classes, published, unit):
  module = build(num_res_blocks=2, out_channels=out_channels, num_classes=num_classes, **options)
  params, _ = abstract(module, side)
  assert num_parameters(params) / 1e6 == pytest.approx(published, abs=unit / 2)


def compare(name, names, expected):
  options, num_classes = PARITY[name]
  sizes = dict(channels=32, channel_mult=(1, 2), num_res_blocks=2, attention_resolutions=(8,))
  module = build(num_classes=num_classes, **sizes, **options)
  params = convert(weights(names), module, sines_first=name == 'ddpm')
  side = make_unet_parity.SIDE
  out = jax.jit(module.apply)(
    {'params': params},
    values('x', (3, side, side, 3)),
    jnp.asarray(make_unet_parity.TIMESTEPS),
    {'label': jnp.asarray(make_unet_parity.LABELS)},
  )
  assert np.abs(out - expected).max() <= 1e-5 * np.abs(expected).max()  # 2e-6 on one CPU.


@pytest.mark.parametrize('name', PARITY)
def test_equals_recorded_diffusers(name):
  recorded = np.load(RECORDED)
  compare(name, json.loads(str(recorded['names']))[name], recorded[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', PARITY)
def test_equals_installed_diffusers(name, request):
  if alone(request):
    compare(name, *make_unet_parity.record(name))


def test_convert_names_what_does_not_fit():
  names = json.loads(str(np.load(RECORDED)['names']))['ddpm']
  module = build(
    channels=32, channel_mult=(1, 2), num_res_blocks=2, attention_resolutions=(8,), **DDPM
  )
  state = weights(names)
  old = {
    name.replace('to_q', 'query').replace('to_out.0', 'proj_attn'): array
    for name, array in state.items()
  }
  jax.tree.map(np.testing.assert_array_equal, convert(old, module), convert(state, module))
  less = {name: array for name, array in state.items() if name != 'conv_in.bias'}
  with pytest.raises(ValueError, match=r'missing conv_in\.bias'):
    convert(less, module)
  with pytest.raises(ValueError, match=r'unexpected class_embedding\.weight'):
    convert({**state, 'class_embedding.weight': np.zeros((11, 128))}, module)
  with pytest.raises(ValueError, match=r'conv_out\.bias'):
    convert({**state, 'conv_out.bias': np.zeros(6)}, module)
  with pytest.raises(ValueError, match=r'down_blocks\.0\.downsamplers\.0\.norm1\.weight'):
    convert(state, build(**{**SMALL, **DDPM, 'resample': 'residual'}))


@pytest.mark.slow
def test_remat_changes_memory_only():
  options = {**ADM, 'channel_mult': (1, 1), 'attention_resolutions': (), 'dropout': 0.3}
  plain, remat = (build(**{**SMALL, **options}, remat=on) for on in ('none', 'blocks'))
  shapes, arguments = abstract(plain, 4)
  again, _ = abstract(remat, 4)
  assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, shapes)
  params = drawn(shapes)

  def run(module):
    def loss(params):
      rngs = {'dropout': jax.random.key(3)}
      out = module.apply({'params': params}, *arguments, train=True, rngs=rngs)
      return jnp.mean(out**2), out

    lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params)
    fast_to_compile = {'xla_backend_optimization_level': 0}
    (_, out), gradient = lowered.compile(compiler_options=fast_to_compile)(params)
    return {'out': out, 'gradient': gradient}

  def close(found, expected):
    """XLA fuses, and so rounds, the two differently; biases before a norm have gradient 0."""
    assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max() + 5e-7

  expected = run(plain)
  jax.tree.map(close, run(remat), expected)
  largest = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected)]
  assert np.median(largest) > 1e-2

  def forward(module):
    return lambda p: module.apply({'params': p}, *arguments)

  assert flops(forward(remat), params) == flops(forward(plain), params)
  assert saved_for_backward(forward(remat), params) < saved_for_backward(forward(plain), params)


def test_residual_resampling_costs_one_more_convolution_each_way():
  """Pooling and repeating are free; each resampling block has two convolutions and a projection."""
  side, width = 8, 32
  options = dict(channels=width, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=())
  counts = []
  for resample in ('conv', 'residual'):
    module = build(**options, **{**ADM, 'resample': resample})
    params, arguments = abstract(module, side)
    counts.append(flops(lambda p, *a, m=module: m.apply({'params': p}, *a), params, *arguments))
  convolutions = 2 * ((side // 2) ** 2 + side**2) * width * 9 * width
  projections = 2 * 2 * (4 * width) * (2 * width)
  assert counts[1] - counts[0] == convolutions + projections


def test_pooling_and_repeating():
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  np.testing.assert_allclose(average_pool(x), nn.avg_pool(x, (2, 2), (2, 2)), atol=1e-6)
  nearest = jax.image.resize(x, (2, 8, 12, 3), 'nearest')
  np.testing.assert_array_equal(nearest_upsample(x), nearest)


def test_head_channels_are_the_width_of_a_head():
  sizes = {**SMALL, 'channel_mult': (1, 2)}
  by_width = build(**sizes, **{**ADM, 'head_channels': 16, 'num_heads': 1})
  shapes, arguments = abstract(by_width, 8)
  params = drawn(shapes)
  by_number = build(**sizes, **{**ADM, 'num_heads': 4})  # Attention is at 64 channels only.
  other_number = build(**sizes, **{**ADM, 'num_heads': 2})

  def apply(module):
    fitted = jax.tree.map(lambda p, s: p.reshape(s.shape), params, abstract(module, 8)[0])
    return jax.jit(module.apply)({'params': fitted}, *arguments)

  out, same, other = (apply(module) for module in (by_width, by_number, other_number))
  np.testing.assert_array_equal(out, same)
  assert not np.allclose(out, other, atol=1e-3)


def test_frequencies():
  """Exponents k / half, or k / (half - 1), of max_period; the last frequency tells them apart."""
  time = jnp.asarray([2.0])
  np.testing.assert_allclose(
    sinusoidal_embedding(time, 4, frequency_shift=1)[0],
    [np.cos(2), np.cos(2e-4), np.sin(2), np.sin(2e-4)],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    sinusoidal_embedding(time, 4)[0],
    [np.cos(2), np.cos(0.02), np.sin(2), np.sin(0.02)],
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(resample='pool'), "resample: got 'pool', allowed 'conv', 'residual'"),
    (dict(frequency_shift=2), 'frequency_shift: got 2, allowed 0, 1'),
    (dict(norm_epsilon=0.0), r'norm_epsilon: got 0\.0'),
    (dict(head_channels=-1), 'head_channels: got -1'),
    (dict(head_channels=48), 'channels: got 64, allowed multiples of head_channels 48'),
    (dict(attention='flash'), "attention: got 'flash', allowed 'auto', 'xla', 'cudnn'"),
    (dict(attention='cudnn'), "attention: got 'cudnn' with dtype float32, allowed 'auto'"),
  ],
)
def test_options_that_cannot_be(changes, message):
  with pytest.raises(ValueError, match=message):
    build(**changes)


@pytest.mark.parametrize('channels, heads', [(32, 8), (512, 1)])
def test_heads_that_cudnn_does_not_have(channels, heads):
  module = build(
    channels=channels, channel_mult=(1,), attention_resolutions=(), num_heads=heads,
    attention='cudnn', dtype=jnp.bfloat16,
  )  # fmt: skip
  with pytest.raises(ValueError, match=f'attention: got .* {channels // heads} channels a head'):
    abstract(module, 8)
