"""Mesh sizes and sharding rules on one device, and operation counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.runtime.cost import flops, num_bytes, saved_for_backward
from diffusion_jax.runtime.mesh import make_mesh, state_shardings


@pytest.mark.parametrize('sizes', [(2, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1)])
def test_mesh_sizes_that_do_not_fit_one_device(sizes):
  with pytest.raises(ValueError, match='allowed'):
    make_mesh(*sizes)


def test_first_matching_rule_decides():
  mesh = make_mesh(-1, 1, 1)
  tree = {'mlp': {'kernel': jnp.zeros((4, 6)), 'bias': jnp.zeros(6)}, 'step': jnp.zeros(())}
  rules = [('mlp/kernel', ('', 'fsdp')), ('mlp', ('tensor',)), ('.*', ())]
  found = state_shardings(tree, mesh, rules)
  assert found['mlp']['kernel'].spec == PartitionSpec(None, 'fsdp')
  assert found['mlp']['bias'].spec == PartitionSpec('tensor')
  assert found['step'].spec == PartitionSpec()
  with pytest.raises(ValueError, match='names more dimensions than mlp/bias'):
    state_shardings(tree, mesh, [('bias', ('', 'fsdp'))])


def test_flops_of_products_convolutions_and_scans():
  a, b = jnp.zeros((5, 7)), jnp.zeros((7, 3))
  assert flops(jnp.dot, a, b) == 2 * 5 * 7 * 3
  batched = jnp.zeros((4, 7, 3))
  assert flops(lambda x, y: jnp.einsum('bij,bjk->bik', x, y), jnp.zeros((4, 5, 7)), batched) == (
    2 * 4 * 5 * 7 * 3
  )

  def conv(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  assert flops(conv, jnp.zeros((1, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))) == 2 * 4 * 4 * 16 * 27

  def loop(x):
    return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=10)[0]

  assert flops(jax.jit(loop), jnp.zeros((6, 6))) == 10 * 2 * 6**3


def test_bytes():
  assert num_bytes({'a': jnp.zeros(3), 'b': jnp.zeros((2, 2), jnp.bfloat16)}) == 12 + 8
  assert saved_for_backward(lambda x: jnp.sum(jnp.sin(x)), jnp.zeros(100)) == 400
