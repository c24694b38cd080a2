"""Layers that more than one backbone uses. float32 parameters; `dtype` is that of the activations.

The gradient of what is broadcast, as a bias over examples and positions, is a sum of up to millions of
terms, in which bfloat16 would lose all but two digits: it is taken in float32 whatever the dtype.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from diffusion_jax.config.options import IF_GIVEN, Check, one_of, option
from diffusion_jax.randomness import example_keys
from diffusion_jax.types import Array, Condition

MAX_SIZE = 65_536  # Largest width, depth or number of heads: beyond it even shapes take for ever.
SIZE = Check(lambda x: 0 < x <= MAX_SIZE, f'> 0 and up to {MAX_SIZE:,}')
LEVELS = Check(lambda mult: mult and min(mult) >= 1, 'one positive integer a level')
REMAT = ('none', 'blocks', 'dots')
NUM_GROUPS = 32  # Of norms.
EMBEDDING_INIT = nn.initializers.normal(0.02)


def by_batch(x: Array, hidden: bool = False) -> Array:
  """x (B, ...), cut over `data` and `fsdp` along the batch and whole otherwise, whatever cuts the parameters.

  Without it the compiler may as well cut activations as the kernels are, and move them instead of kernels.
  hidden: the other dimensions may be cut, as hidden channels and heads are over `tensor`.
  Does nothing where no mesh is set (runtime/mesh.py, within).
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not {'data', 'fsdp'} <= set(mesh.axis_names) or mesh.size == 1:
    return x
  if len(x) % (mesh.shape['data'] * mesh.shape['fsdp']):
    return x
  rest = [PartitionSpec.UNCONSTRAINED if hidden else None] * (x.ndim - 1)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(('data', 'fsdp'), *rest))


def as_matrix(x: Array) -> Array:
  """x (..., d) -> (N, d), where one device computes it; over several, dimensions stay as they are cut.

  On a CPU the gradient of a product of matrices needs no transposed copy, unlike one of more dimensions.
  """
  return x.reshape(-1, x.shape[-1]) if jax.sharding.get_abstract_mesh().size <= 1 else x


def spread(values: Array, like: Array, num_features: int = 1) -> Array:
  """values (d,) or (B, d) over the positions of `like` (B, ..., d), in its dtype.

  num_features: the number of dimensions that d stands for. The gradient is summed in float32, and in the
  dtype of `values`.
  """
  lead, features = values.shape[:-num_features], values.shape[-num_features:]
  aligned = (*lead, *(1,) * (like.ndim - values.ndim), *features)
  summed = tuple(range(len(lead), like.ndim - num_features))
  accumulator = jnp.promote_types(like.dtype, jnp.float32)

  @jax.custom_vjp
  def broadcast(values):
    return jnp.broadcast_to(values.astype(like.dtype).reshape(aligned), like.shape)

  def backward(_, gradient):
    return (jnp.sum(gradient, summed, dtype=accumulator).astype(values.dtype),)

  broadcast.defvjp(lambda values: (broadcast(values), None), backward)
  return broadcast(values)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """x (1 + scale) + shift: x (B, ..., d); shift, scale (B, d) float32."""
  return x * spread(1 + scale, x) + spread(shift, x)


class Dense(nn.Dense):
  """nn.Dense with a bias that is spread: the same parameters and values.

  hidden: its outputs are hidden channels, which `tensor` may cut.
  """

  use_bias: bool = False  # nn.Dense adds none: `spread` does.
  hidden: bool = False

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    x = by_batch(inputs, hidden=True)
    y = super().__call__(as_matrix(x)).reshape(*x.shape[:-1], self.features)
    y = by_batch(y, self.hidden)
    return y + spread(self.param('bias', self.bias_init, (self.features,)), y)


class Conv(nn.Conv):
  """nn.Conv with a bias that is spread: the same parameters and values.

  hidden: its outputs are hidden channels, which `tensor` may cut.
  """

  use_bias: bool = False  # nn.Conv adds none: `spread` does.
  hidden: bool = False

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    y = by_batch(super().__call__(by_batch(inputs, hidden=True)), self.hidden)
    return y + spread(self.param('bias', self.bias_init, (self.features,)), y)


class NormSilu(nn.GroupNorm):
  """SiLU of a GroupNorm of 32 groups, scaled and shifted in between if that is given.

  Statistics in float32. Made by `norm_silu`, it keeps nothing but its inputs for the backward pass.
  """

  num_groups: int | None = NUM_GROUPS

  @nn.compact
  def __call__(self, x: Array, shift: Array | None = None, scale: Array | None = None) -> Array:
    """x (B, ..., d); shift, scale (B, d) float32 -> as x."""
    h = super().__call__(x)
    return nn.silu(h if shift is None else modulate(h, shift, scale))


def norm_silu(epsilon: float, dtype: jnp.dtype, name: str) -> nn.Module:
  """Makes a NormSilu, whose intermediate values the backward pass computes again."""
  return nn.remat(NormSilu)(epsilon=epsilon, dtype=dtype, name=name)


class QKV(nn.Module):
  """Queries, keys and values of all heads in one product: (..., d) -> (..., 3, heads, head width).

  The kernel (d, 3, heads, head width) and the bias keep the heads apart, so that rules can cut them by
  heads; the kernel is drawn as (d, 3d).
  """

  num_heads: int
  dtype: jnp.dtype
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    width = x.shape[-1]
    heads = (3, self.num_heads, width // self.num_heads)

    def init(key, shape):
      return self.kernel_init(key, (width, 3 * width)).reshape(shape)

    kernel = self.param('kernel', init, (width, *heads)).astype(self.dtype)
    bias = self.param('bias', nn.initializers.zeros, heads)
    y = jnp.tensordot(as_matrix(by_batch(x).astype(self.dtype)), kernel, 1)
    y = by_batch(y.reshape(*x.shape[:-1], *heads), hidden=True)
    return y + spread(bias, y, num_features=3)


def remat_option() -> str:
  """The field by which a backbone lets its blocks be computed again."""
  return option(
    'none',
    "What the backward pass computes again: 'none', 'blocks' all but their inputs, 'dots' all but those "
    'and products with parameters.',
    one_of(*REMAT),
    IF_GIVEN,
  )


def remat(block: type[nn.Module], policy: str, **options: Any) -> type[nn.Module]:
  """A block that is computed again in the backward pass, as one of REMAT says; values are the same.

  options: of nn.remat.
  """
  if policy == 'none':
    return block
  kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if policy == 'dots' else None
  return nn.remat(block, policy=kept, **options)


class Dropout(nn.Module):
  """Zeroes a share of the values and scales the others, by a mask that depends on an example's row."""

  rate: float

  @nn.compact
  def __call__(self, x: Array, rows: Array | None) -> Array:
    """x (B, ...), rows (B,) numbers of the examples in the batch; None changes nothing."""
    if rows is None or self.rate == 0:
      return x
    if self.rate == 1:
      return jnp.zeros_like(x)
    keys, kept = example_keys(self.make_rng('dropout'), rows), 1 - self.rate
    mask = jax.vmap(lambda key: jax.random.bernoulli(key, kept, x.shape[1:]))(keys)
    return jnp.where(mask, x / kept, 0)


def sinusoidal_embedding(
  time: Array, width: int, max_period: float = 10_000.0, frequency_shift: int = 0
) -> Array:
  """[cos, sin] of time times width/2 frequencies from 1 to 1/max_period: (B,) -> (B, width) float32.

  The frequencies are max_period^(-k / (width/2 - frequency_shift)): shift 0 in the published ADM and
  DiT, which stop just before 1/max_period; 1 in DDPM, which reaches it.
  """
  half = width // 2
  exponents = -np.log(max_period) * np.arange(half) / (half - frequency_shift)
  frequencies = np.exp(exponents).astype(np.float32)
  angles = time.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ConditionEmbedding(nn.Module):
  """Time and condition -> one vector (B, width) float32: MLP(sinusoids) + label table.

  float32 throughout: the vector's gradient is a sum over all blocks, a row's one over the batch.
  num_classes = 0 is unconditional: there is no table and no label is needed. Otherwise the table
  has num_classes + 1 rows, the last for "no class". Each further condition is a number (B,), which is
  embedded as the time is and added; its parameters exist if it is there at initialisation.
  """

  width: int
  sinusoid_width: int
  num_classes: int
  kernel_init: nn.initializers.Initializer = EMBEDDING_INIT
  frequency_shift: int = 0

  @nn.compact
  def __call__(self, time: Array, condition: Condition) -> Array:
    def embed(value: Array, name: str) -> Array:
      h = sinusoidal_embedding(
        value, self.sinusoid_width, frequency_shift=self.frequency_shift
      )  # (B, sinusoid_width)
      h = by_batch(
        nn.Dense(self.width, kernel_init=self.kernel_init, name=f'{name}_in')(by_batch(h))
      )
      return by_batch(
        nn.Dense(self.width, kernel_init=self.kernel_init, name=f'{name}_out')(nn.silu(h))
      )

    h = embed(time, 'time')  # (B, width)
    if self.num_classes:
      table = nn.Embed(
        self.num_classes + 1, self.width, embedding_init=EMBEDDING_INIT, name='label'
      )
      h = h + by_batch(table(condition['label']))
    for name in sorted(set(condition) - {'label'}):
      h = h + embed(condition[name], name)
    return h


def require_divisible(name: str, value: int, by_name: str, by: int) -> None:
  """Raises: ValueError that names both fields and the nearest value of the first that works."""
  if value % by:
    nearest = max(by, round(value / by) * by)
    raise ValueError(
      f'{name}: got {value}, allowed multiples of {by_name} {by} (nearest {nearest})'
    )
