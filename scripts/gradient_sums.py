"""Measures the rounding of gradient sums in bfloat16 on a DiT-B-shaped reduction, against float64.

    PYTHONPATH=. python scripts/gradient_sums.py

The gradients that arrive at the positions are bfloat16 in both columns: random values of mean 0.1 and
deviation 1, 256 images of 256 tokens and width 768. "plain" lets JAX differentiate the broadcasting in
bfloat16, as flax.linen.Dense does; "float32 sums" is models/layers.py. Prints a Markdown table of the
error's norm over the norm of the exact sum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.layers import spread

BATCH, TOKENS, WIDTH, CLASSES, BLOCKS = 256, 256, 768, 10, 12


def error(found: jax.Array, exact: np.ndarray) -> float:
  """The norm of the difference over that of `exact`."""
  return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))


def plain(values: jax.Array, like: jax.Array) -> jax.Array:
  """Broadcasts `values` (d,) or (B, d) as adding them to `like` (B, N, d) does."""
  values = values.astype(like.dtype)
  return jnp.broadcast_to(values if values.ndim == 1 else values[:, None], like.shape)


def gradient(broadcast, values: jax.Array, arriving: jax.Array) -> jax.Array:
  """Returns the gradient of `values`, given the gradient `arriving` at every position."""

  def loss(values, arriving):
    return jnp.vdot(broadcast(values, arriving), arriving)

  return jax.jit(jax.grad(loss))(values, arriving)


def main() -> None:
  """Prints the table."""
  keys = jax.random.split(jax.random.key(0), 3)
  arriving = 0.1 + jax.random.normal(keys[0], (BATCH, TOKENS, WIDTH))
  arriving = arriving.astype(jnp.bfloat16)
  exact = np.asarray(arriving, np.float64)
  bias, gate = jnp.zeros(WIDTH), jnp.zeros((BATCH, WIDTH))

  sums = {'bias, 65,536 terms': (bias, (0, 1)), 'gate or scale, 256 terms': (gate, 1)}
  rows = [
    (name, gradient(plain, values, arriving), gradient(spread, values, arriving), exact.sum(axes))
    for name, (values, axes) in sums.items()
  ]

  labels = jax.random.randint(keys[1], (BATCH,), 0, CLASSES)
  of_condition = 0.1 + jax.random.normal(keys[2], (BLOCKS, BATCH, WIDTH))
  of_condition = of_condition.astype(jnp.bfloat16)
  exact = np.zeros((CLASSES, WIDTH))
  np.add.at(exact, np.asarray(labels), np.asarray(of_condition, np.float64).sum(0))

  def table_gradient(dtype):
    def loss(table, labels, arriving):
      blocks = jnp.broadcast_to(table.astype(dtype)[labels], arriving.shape)
      return jnp.vdot(blocks, arriving.astype(dtype))

    return jax.jit(jax.grad(loss))(jnp.zeros((CLASSES, WIDTH)), labels, of_condition)

  name = 'label table, 12 blocks of 256 images'
  rows.append((name, table_gradient(jnp.bfloat16), table_gradient(jnp.float32), exact))
  print('| gradient of | plain bfloat16 | float32 sums |\n|---|---|---|')
  for name, before, after, right in rows:
    print(f'| {name} | {error(before, right):.1e} | {error(after, right):.1e} |')


if __name__ == '__main__':
  main()
