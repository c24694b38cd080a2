"""Multi-head self-attention, and which implementation computes it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.config.options import IF_GIVEN, one_of, option
from diffusion_jax.types import Array

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn')
MULTIPLE = 8  # Of channels, the width of cuDNN's heads.
WIDEST = ((9.0, 256), (8.0, 128))  # Least compute capability -> widest head of its backward pass.
CUDNN_FROM = 128  # Tokens: with fewer, XLA's is often as fast.
BY_HEAD_FROM = 256  # Tokens, on a CPU: with 128 it is slower.
HEADS_AT_ONCE = 8  # Of one CPU.


def attention_option() -> str:
  """The field by which a backbone chooses."""
  return option(
    'auto',
    "Implementation of attention: 'xla'; 'cudnn', fused, on NVIDIA GPUs in bfloat16; 'auto' chooses by "
    'device, dtype, tokens and width of the heads.',
    one_of(*IMPLEMENTATIONS),
    IF_GIVEN,
  )


def widest_head(device: jax.Device) -> int:
  """The widest head that cuDNN's fused attention has on this device, 0 if it has none there."""
  try:  # GPUs of others name theirs otherwise, and other devices none.
    capability = float(getattr(device, 'compute_capability', ''))
  except ValueError:
    return 0
  return next((width for least, width in WIDEST if capability >= least), 0)


def chosen(
  implementation: str, length: int, head_width: int, dtype: jnp.dtype, device: jax.Device
) -> str:
  """Returns 'xla' or 'cudnn' for `length` tokens with heads of this width on this device."""
  if implementation != 'auto':
    return implementation
  fits = head_width % MULTIPLE == 0 and head_width <= widest_head(device)
  return 'cudnn' if fits and jnp.dtype(dtype).itemsize == 2 and length >= CUDNN_FROM else 'xla'


def require_cudnn(
  implementation: str, head_width: int, dtype: jnp.dtype, most: int = WIDEST[0][1]
) -> None:
  """Raises: ValueError if 'cudnn' is asked for with a dtype that it lacks, or heads wider than `most`.

  most: the widest of any device, or `widest_head` of one.
  """
  if implementation != 'cudnn':
    return
  if jnp.dtype(dtype).itemsize != 2:
    raise ValueError(
      f"attention: got 'cudnn' with dtype {jnp.dtype(dtype).name}, allowed 'auto', 'xla', or dtype bfloat16"
    )
  if not most:
    raise ValueError("attention: got 'cudnn', allowed 'auto', 'xla' on this device")
  if head_width % MULTIPLE or head_width > most:
    raise ValueError(
      f"attention: got 'cudnn' with {head_width} channels a head, allowed 'auto', 'xla', or sizes that make "
      f'heads of a multiple of {MULTIPLE} up to {most}'
    )


def attend(qkv: Array, implementation: str = 'auto') -> Array:
  """Multi-head self-attention: (B, N, 3, heads, head width) -> (B, N, d), softmax in float32.

  implementation: one of IMPLEMENTATIONS. Raises: ValueError for 'cudnn' where it cannot run.
  """
  length, width, device = qkv.shape[1], qkv.shape[-1], jax.devices()[0]
  implementation = chosen(implementation, length, width, qkv.dtype, device)
  require_cudnn(implementation, width, qkv.dtype, widest_head(device))
  if implementation == 'xla' and length >= BY_HEAD_FROM and _is_one_cpu():
    return _attend_by_head(qkv)
  q, k, v = (x.squeeze(2) for x in jnp.split(qkv, 3, axis=2))
  h = jax.nn.dot_product_attention(q, k, v, implementation=implementation)
  return h.reshape(*h.shape[:2], -1)


def _is_one_cpu() -> bool:
  return jax.default_backend() == 'cpu' and jax.device_count() == 1


def _attend_by_head(qkv: Array) -> Array:
  """The same, a few heads of examples at a time: a CPU's caches hold their N x N weights.

  XLA's products of many small matrices reach a third of the speed of plain ones on a CPU; plain ones that do
  not depend on each other run on different cores. The weights are computed again in the backward pass, which is
  quicker there than to read them. Over several devices a loop over examples would move these: this is for one.
  """
  batch, length, _, heads, width = qkv.shape
  at_once = math.gcd(batch * heads, HEADS_AT_ONCE)
  each = [
    x.squeeze(2).transpose(0, 2, 1, 3).reshape(-1, at_once, length, width)
    for x in jnp.split(qkv, 3, axis=2)
  ]

  @jax.checkpoint
  def one(q, k, v):
    logits = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) / width**0.5
    return nn.softmax(logits).astype(v.dtype) @ v

  def several(qkv):
    return jnp.stack([one(*head) for head in zip(*map(jnp.unstack, qkv))])

  h = jax.lax.map(several, tuple(each))  # (B heads / at_once, at_once, N, head width)
  return h.reshape(batch, heads, length, width).transpose(0, 2, 1, 3).reshape(batch, length, -1)
