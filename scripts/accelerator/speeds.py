"""Time, memory and share of the chip's peak: training steps and sampling, on random arrays."""

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from accelerator import arrays, systems
from accelerator.systems import NUM_CLASSES, Sizes, Training
from diffusion_jax.models.discriminator import PatchDiscriminator
from diffusion_jax.runtime import cost
from diffusion_jax.types import PyTree

OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'Out of memory')


def activation_dtype() -> jnp.dtype:
  """bfloat16 on accelerators, as `config.dtype` 'auto' has it."""
  return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16


def forward_flops(module, shape: tuple[int, int, int]) -> int:
  """Operations of one example forward; the module must not use cuDNN, whose kernels have no count."""
  params = systems.abstract_params(module, shape)
  inputs = (jnp.zeros((1, *shape)), jnp.zeros(1), {'label': jnp.zeros(1, jnp.int32)})
  return cost.flops(lambda p, *x: module.apply({'params': p}, *x), params, *inputs)


def autoencoder_flops(sizes: Sizes, dtype: jnp.dtype) -> tuple[int, int]:
  """Operations an image: encoder and decoder together, and discriminator."""
  side = sizes.image_size
  images = jnp.zeros((1, side, side, 3))
  module, judge = systems.make_vae(sizes, dtype), PatchDiscriminator(*sizes.discriminator, dtype)
  latent = side // module.factor
  noise = jnp.zeros((1, latent, latent, module.embed_channels))
  counts = []
  for part, inputs in ((module, (images, noise)), (judge, (images,))):
    variables = jax.eval_shape(functools.partial(part.init, jax.random.key(0)), *inputs)
    counts.append(cost.flops(part.apply, variables, *inputs))
  return counts[0], counts[1]


def fit(measure: Callable[[int], dict[str, Any]], batch_size: int) -> dict[str, Any]:
  """measure(batch_size), halved for as long as the device's memory does not suffice."""
  while True:
    try:
      return measure(batch_size)
    except Exception as error:
      if batch_size == 1 or not any(text in str(error) for text in OUT_OF_MEMORY):
        raise
    batch_size //= 2  # Outside the handler, which would keep the arrays of the failed call.


def program_bytes(compiled) -> int | None:
  """Arguments, results and temporaries of a compiled program."""
  stats = compiled.memory_analysis()
  if stats is None:
    return None
  held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  return held + stats.temp_size_in_bytes


def peak_bytes() -> int | None:
  """The most that this process has held on the device; None where the device does not count."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def median_seconds(call: Callable[[], PyTree], repeats: int) -> tuple[float, list[float]]:
  """Times calls that return arrays, after two to warm up."""
  for _ in range(2):
    jax.block_until_ready(call())
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    times.append(time.perf_counter() - began)
  return statistics.median(times), times


def compiled(function: Callable, *args, **options) -> tuple[Callable, float]:
  """The compiled function and the seconds of compiling."""
  began = time.perf_counter()
  program = jax.jit(function, **options).lower(*args).compile()
  return program, time.perf_counter() - began


def measure_training(training: Training, sizes: Sizes, batch_size: int) -> dict[str, Any]:
  """Steps of the compiled train_step with its state donated."""
  state = training.init()
  batch = training.make_batch(batch_size)
  parameters = cost.num_parameters(state.params['model'])
  step, compile_s = compiled(training.step, state, batch, donate_argnums=0)

  def several():
    nonlocal state
    for _ in range(sizes.steps):
      state, metrics = step(state, batch)
    return metrics

  seconds, times = median_seconds(several, sizes.repeats)
  return {
    'parameters': parameters,
    'loss': float(several()['loss']),
    **facts(step, compile_s, batch_size * sizes.steps, batch_size, training.flops, seconds, times),
  }


def measure_sampling(
  module, shape: tuple, num_classes: int, flops: int, sizes: Sizes, cfg_scale: float, batch_size
) -> dict[str, Any]:
  """Whole samples, from noise to x_0."""
  generator = systems.make_generator(shape, num_classes, sizes.sample_steps, cfg_scale)

  def generate(params, indices, labels):
    return generator(lambda *x: module.apply({'params': params}, *x), indices, labels)[0]

  params = systems.backbone_params(module, shape)
  indices = jnp.arange(batch_size, dtype=jnp.uint32)
  labels = jnp.arange(batch_size, dtype=jnp.int32) % num_classes
  program, compile_s = compiled(generate, params, indices, labels)
  seconds, times = median_seconds(lambda: program(params, indices, labels), sizes.repeats)
  evaluations = sizes.sample_steps * (1 if cfg_scale == 1 else 2)
  return {
    'cfg_scale': cfg_scale,
    'num_steps': sizes.sample_steps,
    **facts(program, compile_s, batch_size, batch_size, evaluations * flops, seconds, times),
  }


def facts(
  program, compile_s: float, images: int, batch_size: int, flops: int, seconds: float, times: list
) -> dict[str, Any]:
  """Returns the entries that every measurement has. flops: those of one image."""
  return {
    'batch_size': batch_size,
    'compile_s': compile_s,
    'seconds': seconds,
    'repeats_s': times,
    'images_per_s': images / seconds,
    'flops_per_image': flops,
    'flops_per_s': flops * images / seconds,
    'program_bytes': program_bytes(program),
    'peak_bytes': peak_bytes(),
  }


def time_matmul(sizes: Sizes) -> dict[str, Any]:
  """Operations a second of one large matrix product of random bfloat16 numbers: the practical ceiling."""
  n = sizes.matmul
  a, b = (arrays.normal(i, n, n).astype(activation_dtype()) for i in range(2))
  program, _ = compiled(jnp.matmul, a, b)

  def several():
    return [program(a, b) for _ in range(10)][-1]

  seconds, _ = median_seconds(several, sizes.repeats)
  return {'side': n, 'dtype': jnp.dtype(a.dtype).name, 'flops_per_s': 20 * n**3 / seconds}


def train_dit(sizes: Sizes, name: str, attention: str) -> dict[str, Any]:
  """One DiT on latents."""
  dtype = activation_dtype()
  counted = forward_flops(systems.make_dit(sizes, name, 'xla', dtype), sizes.latent_shape)
  module = systems.make_dit(sizes, name, attention, dtype)
  training = systems.diffusion_training(module, sizes.latent_shape, 'dit', sizes.dit_batch, counted)
  return fit(functools.partial(measure_training, training, sizes), training.batch_size)


def train_unet(sizes: Sizes, attention: str) -> dict[str, Any]:
  """The UNet on images, its blocks recomputed as in its config, which is not counted as work."""
  shape, dtype = (sizes.image_size, sizes.image_size, 3), activation_dtype()
  counted = forward_flops(systems.make_unet(sizes.unet, 'xla', dtype, remat=False), shape)
  module = systems.make_unet(sizes.unet, attention, dtype, remat=True)
  training = systems.diffusion_training(module, shape, 'unet', sizes.unet_batch, counted)
  return fit(functools.partial(measure_training, training, sizes), training.batch_size)


def train_vae(sizes: Sizes, adversarial: bool) -> dict[str, Any]:
  """The autoencoder on images."""
  dtype = activation_dtype()
  forward, judge = autoencoder_flops(sizes, dtype)
  training = systems.autoencoder_training(sizes, dtype, adversarial, forward, judge)
  return fit(functools.partial(measure_training, training, sizes), training.batch_size)


def sample(sizes: Sizes, kind: str, name: str, attention: str, cfg_scale: float) -> dict[str, Any]:
  """A DiT (kind 'dit', of this name) or the UNet."""
  dtype = activation_dtype()
  if kind == 'dit':
    shape = sizes.latent_shape
    counted, module = (systems.make_dit(sizes, name, a, dtype) for a in ('xla', attention))
  else:
    shape = (sizes.image_size, sizes.image_size, 3)
    counted, module = (
      systems.make_unet(sizes.unet, a, dtype, remat=False) for a in ('xla', attention)
    )
  flops = forward_flops(counted, shape)
  measure = functools.partial(
    measure_sampling, module, shape, NUM_CLASSES[kind], flops, sizes, cfg_scale
  )
  return fit(measure, sizes.sample_batch)
