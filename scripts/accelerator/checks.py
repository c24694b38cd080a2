"""Whether the accelerator computes what it should: each row has a value, a tolerance and a verdict.

Errors are norms of differences over norms of the reference. References are float64 on the CPU where
the row says so: the same code and parameters, so that only arithmetic differs. float32 with TF32 on is
wrong by about 3e-4, float32 proper by 1e-6, bfloat16 by 4e-3 an operation: tolerances lie between.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from accelerator import arrays, systems
from accelerator.systems import NUM_CLASSES, Sizes
from diffusion_jax.diffusion.pixels import to_uint8
from diffusion_jax.models import inception
from diffusion_jax.types import PyTree

FLOAT32 = 2e-5  # Sums of thousands of products in another order.
BFLOAT16 = 5e-2  # A dozen blocks, each of a dozen roundings of 2^-9.
Rows = list[dict[str, Any]]


def row(name: str, value: float | None, tolerance: float | None, note: str = '') -> dict[str, Any]:
  """passed is None where nothing is promised; a NaN passes nothing."""
  passed = None if value is None or tolerance is None else bool(value <= tolerance)
  return {'name': name, 'value': value, 'tolerance': tolerance, 'passed': passed, 'note': note}


def error(found: PyTree, reference: PyTree) -> float:
  """|found - reference| / |reference| over all arrays, in float64."""
  found, reference = (
    np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(jax.device_get(t))])
    for t in (found, reference)
  )
  return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def in_float64(function: Callable, *args, jit: bool = True) -> PyTree:
  """function of the arguments, their float arrays widened, on the CPU: NumPy arrays."""

  def widened(x):
    x = np.asarray(x)
    return x.astype(np.float64) if np.issubdtype(x.dtype, np.floating) else x

  args = jax.tree.map(widened, jax.device_get(args))
  with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
    return jax.device_get((jax.jit(function) if jit else function)(*args))


def groups(tree: PyTree) -> dict[str, PyTree]:
  """Parameter groups: the layers of a transformer block one by one, of anything else the parts."""
  found = {name: part for name, part in tree.items() if name != 'blocks'}
  return found | {f'blocks/{name}': part for name, part in tree.get('blocks', {}).items()}


def gradient_of(module: nn.Module) -> Callable:
  """(params, x, time, labels, target) -> gradient of the mean squared error to the target."""

  def loss(params, x, time, labels, target):
    return jnp.mean(
      jnp.square(module.apply({'params': params}, x, time, {'label': labels}) - target)
    )

  return jax.grad(loss)


def backbone_inputs(module: nn.Module, shape: tuple, batch: int, classes: int) -> tuple:
  """Random parameters and random inputs for gradient_of, on the device."""
  params = systems.backbone_params(module, shape)
  x, target = arrays.normal(3, 2, batch, *shape)
  time = jnp.linspace(0.0, 999.0, batch)
  return params, x, time, jnp.arange(batch, dtype=jnp.int32) % classes, target


def gradients(sizes: Sizes) -> Rows:
  """bfloat16 against float32 on the device, by parameter group; float32 against float64."""
  rows = []
  shape = sizes.latent_shape
  square = (sizes.check_image_size, sizes.check_image_size, 3)
  backbones = {
    'DiT': (lambda dtype: systems.make_dit(sizes, sizes.check_dit, 'xla', dtype), shape, 'dit'),
    'UNet': (
      lambda dtype: systems.make_unet(sizes.check_unet, 'xla', dtype, remat=False),
      square,
      'unet',
    ),
  }
  for title, (make, shape, kind) in backbones.items():
    args = backbone_inputs(make(jnp.float32), shape, sizes.check_batch, NUM_CLASSES[kind])
    low = jax.jit(gradient_of(make(jnp.bfloat16)))(*args)
    with jax.default_matmul_precision('float32'):
      single = jax.jit(gradient_of(make(jnp.float32)))(*args)
    double = in_float64(gradient_of(make(jnp.float64)), *args)
    rows.append(
      row(f'{title}: float32 gradient, TF32 off, to float64', error(single, double), FLOAT32)
    )
    if jax.default_backend() != 'cpu':
      default = jax.jit(gradient_of(make(jnp.float32)))(*args)
      note = 'for information: with TF32 where the device has it'
      rows.append(row(f'{title}: float32 gradient by default', error(default, double), None, note))
    whole = groups(single)
    for name, part in groups(low).items():
      rows.append(row(f'{title}: bfloat16 gradient of {name}', error(part, whole[name]), BFLOAT16))
  return rows


def attention(sizes: Sizes) -> Rows:
  """XLA's and cuDNN's attention in bfloat16, forward and gradient, against each other and float64."""
  qkv = arrays.normal(4, 3, *sizes.attention).astype(jnp.bfloat16)
  weights = arrays.normal(5, *sizes.attention)

  def both(implementation):
    def weighted(qkv, weights):
      h = jax.nn.dot_product_attention(*qkv, implementation=implementation)
      return jnp.sum(h.astype(weights.dtype) * weights), h

    def run(qkv, weights):
      gradient, h = jax.grad(weighted, has_aux=True)(qkv, weights)
      return {'forward': h, 'gradient': gradient}

    return run

  double = in_float64(both('xla'), qkv.astype(jnp.float32), weights)
  xla = jax.jit(both('xla'))(qkv, weights)
  rows = [row(f'XLA {part} to float64', error(xla[part], double[part]), 2e-2) for part in double]
  if jax.default_backend() != 'gpu':
    return [*rows, row('cuDNN', None, None, 'skipped: needs an NVIDIA GPU')]
  cudnn = jax.jit(both('cudnn'))(qkv, weights)
  for part in double:
    rows.append(row(f'cuDNN {part} to float64', error(cudnn[part], double[part]), 2e-2))
    rows.append(row(f'cuDNN {part} to XLA', error(cudnn[part], xla[part]), 2e-2))
  return rows


def float32(sizes: Sizes) -> Rows:
  """Matrix products and convolutions with TF32 off, and the autoencoder, against float64."""
  n = min(sizes.matmul, 1024)
  a, b = arrays.normal(6, 2, n, n)
  side = sizes.check_image_size
  x = arrays.normal(7, sizes.check_batch, side, side, 64)
  kernel = arrays.normal(8, 3, 3, 64, 64)
  images = arrays.random_images(sizes.check_batch, (side, side, 3)) / 127.5 - 1

  def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  def convolution_gradient(x, kernel):
    return jax.grad(lambda *args: jnp.sum(convolution(*args) ** 2), argnums=(0, 1))(x, kernel)

  def autoencoder(dtype):
    module = systems.make_vae(sizes, dtype)
    return module, lambda params, x: module.apply(
      {'params': params}, module.apply({'params': params}, x, method='encode').mean, method='decode'
    )

  module, whole = autoencoder(jnp.float32)
  latent = side // module.factor
  noise = jnp.zeros((1, latent, latent, module.embed_channels))
  abstract = jax.eval_shape(module.init, jax.random.key(0), images[:1], noise)['params']
  params = arrays.random_params(abstract)
  cases = {
    'matrix product': (jnp.matmul, jnp.matmul, (a, b)),
    'convolution': (convolution, convolution, (x, kernel)),
    'convolution, gradient': (convolution_gradient, convolution_gradient, (x, kernel)),
    'autoencoder': (whole, autoencoder(jnp.float64)[1], (params, images)),
  }
  rows = []
  for name, (function, reference, args) in cases.items():
    with jax.default_matmul_precision('float32'):
      found = jax.jit(function)(*args)
    rows.append(row(f'{name}, TF32 off', error(found, in_float64(reference, *args)), FLOAT32))
  return rows


def condition(sizes: Sizes) -> Rows:
  """Checks the float32 parts of a bfloat16 network, as the network computes them on this device."""
  module = systems.make_dit(sizes, sizes.check_dit, 'xla', jnp.bfloat16)
  args = backbone_inputs(module, sizes.latent_shape, sizes.check_batch, NUM_CLASSES['dit'])

  def embedding(dtype):
    module = systems.make_dit(sizes, sizes.check_dit, 'xla', dtype)

    def run(params, x, time, labels, target):
      del target
      _, kept = module.apply(
        {'params': params},
        x,
        time,
        {'label': labels},
        capture_intermediates=True,
        mutable=['intermediates'],
      )
      return kept['intermediates']['condition']['__call__'][0]

    return run

  found = jax.jit(embedding(jnp.bfloat16))(*args)
  value = error(found, in_float64(embedding(jnp.float64), *args))
  return [row('embedding of time and label of a bfloat16 DiT', value, FLOAT32)]


def fid(sizes: Sizes) -> Rows:
  """InceptionV3 with random weights on random images."""
  count, side = sizes.photos
  images = arrays.random_images(count, (side, side, 3))
  module = inception.InceptionV3()
  abstract = jax.eval_shape(module.init, jax.random.key(0), images[:1])['params']
  params = arrays.random_params(abstract, gain=2.0)

  def reference(params, images):
    def widen(call, args, kwargs, context):
      if isinstance(context.module, inception.Convolution):
        return convolved_in_float64(context.module, *args)
      return call(*args, **kwargs)

    with nn.intercept_methods(widen):
      return module.apply({'params': params}, images)

  found = jax.jit(module.apply)({'params': params}, images)
  double = in_float64(reference, params, images, jit=False)
  names = ('features', 'logits')
  return [row(n, error(f, d), FLOAT32) for n, f, d in zip(names, found, double)]


def convolved_in_float64(module: inception.Convolution, x) -> np.ndarray:
  """The convolution, bias and ReLU in NumPy, tap by tap: XLA has no fast one in float64 on a CPU."""
  params, stride = module.variables['params'], module.stride
  kernel = np.asarray(params['kernel'])  # (height, width, in, out)
  pad = [(n // 2, n // 2) if module.padding == 'SAME' else (0, 0) for n in kernel.shape[:2]]
  x = np.pad(np.asarray(x, np.float64), ((0, 0), *pad, (0, 0)))
  height, width = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], kernel.shape[:2]))
  out = np.zeros((len(x) * height * width, kernel.shape[-1]))
  for i, j in np.ndindex(*kernel.shape[:2]):
    ends = (i + (height - 1) * stride + 1, j + (width - 1) * stride + 1)
    out += x[:, i : ends[0] : stride, j : ends[1] : stride].reshape(len(out), -1) @ kernel[i, j]
  return np.maximum(out + np.asarray(params['bias']), 0).reshape(len(x), height, width, -1)


def samples(sizes: Sizes) -> Rows:
  """The same samples as on the CPU: guided DDIM of a DiT in float32, TF32 off."""
  shape, classes, count = sizes.latent_shape, NUM_CLASSES['dit'], sizes.check_batch
  module = systems.make_dit(sizes, 's', 'xla', jnp.float32)
  generator = systems.make_generator(shape, classes, 10, 4.0)
  params = systems.backbone_params(module, shape)

  def generate(params, indices, labels):
    return generator(lambda *x: module.apply({'params': params}, *x), indices, labels)[0]

  args = (params, np.arange(count, dtype=np.uint32), np.arange(count, dtype=np.int32))
  with jax.default_matmul_precision('float32'):
    here = jax.jit(generate)(*args)
    with jax.default_device(jax.devices('cpu')[0]):
      there = jax.jit(generate)(*jax.device_get(args))
  here, there = jax.device_get((here, there))
  levels = [np.asarray(to_uint8(x), np.int32) for x in (here, there)]
  differ = np.abs(levels[0] - levels[1])
  note = 'trivial: the device is the CPU' if jax.default_backend() == 'cpu' else ''
  return [
    row('x_0, relative', error(here, there), 1e-4, note),
    row('largest difference in levels of 255', float(differ.max()), 1.0, note),
    row('share of values that differ', float(np.mean(differ > 0)), 1e-2, note),
  ]
