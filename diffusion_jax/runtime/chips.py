"""What a device can do at most: from a table of known chips, or by a quick measurement."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Part of the device's name -> dense bfloat16 TFLOP/s, memory GB/s, both as published; the first that fits.
CHIPS = (
  ('H100 PCIe', 756.0, 2000.0),
  ('H100 NVL', 835.0, 3900.0),
  ('H100', 989.0, 3350.0),
  ('H200', 989.0, 4800.0),
  ('B200', 2250.0, 8000.0),
  ('A100-SXM4-80GB', 312.0, 2039.0),
  ('A100 80GB PCIe', 312.0, 1935.0),
  ('A100', 312.0, 1555.0),
  ('L40S', 362.0, 864.0),
  ('L40', 181.0, 864.0),
  ('L4', 121.0, 300.0),
  ('RTX 4090', 165.0, 1008.0),
  ('TPU v4', 275.0, 1228.0),
  ('TPU v5 lite', 197.0, 819.0),
  ('TPU v5e', 197.0, 819.0),
  ('TPU v5', 459.0, 2765.0),
  ('TPU v6', 918.0, 1640.0),
)
# Float32 products run there at half the rate of bfloat16, as TF32.
HALVED = ('gpu', 'cuda', 'rocm')
SIDE, CPU_SIDE, BYTES, REPEATS = 8192, 1024, 2**26, 5  # Of the quick measurement.


class Limits(NamedTuple):
  """flops_per_s, bytes_per_s: of one device. source: 'published' or 'measured here'."""

  flops_per_s: float
  bytes_per_s: float
  source: str


def published(kind: str, platform: str, dtype: Any) -> Limits | None:
  """The limits of a device of this kind (jax.Device.device_kind); None if the table lacks it."""
  share = 0.5 if jnp.dtype(dtype).itemsize == 4 and platform in HALVED else 1.0
  for part, tera_flops, giga_bytes in CHIPS:
    if part in kind:
      return Limits(share * tera_flops * 1e12, giga_bytes * 1e9, 'published')
  return None


@functools.cache
def limits(dtype: Any) -> Limits:
  """The limits of one device of this process with activations of `dtype`."""
  device = jax.local_devices()[0]
  return published(device.device_kind, device.platform, dtype) or measured(dtype)


def measured(dtype: Any) -> Limits:
  """Measures a matrix product and a sweep over memory on one device, in some tenths of a second.

  The devices of a CPU share its cores: each is given its part of what one reaches.
  """
  side = CPU_SIDE if jax.default_backend() == 'cpu' else SIDE
  x = jnp.ones((side, side), dtype)
  flops = 2 * side**3 / _seconds(jax.jit(jnp.matmul), x, x)
  y = jnp.ones(BYTES // 4, jnp.float32)
  moved = 2 * BYTES / _seconds(jax.jit(lambda y: y + 1), y)
  shared = jax.local_device_count() if jax.default_backend() == 'cpu' else 1
  return Limits(flops / shared, moved / shared, 'measured here')


def _seconds(function: Callable, *args) -> float:
  jax.block_until_ready(function(*args))
  times = []
  for _ in range(REPEATS):
    began = time.perf_counter()
    jax.block_until_ready(function(*args))
    times.append(time.perf_counter() - began)
  return min(times)
