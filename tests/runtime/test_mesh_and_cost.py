"""Mesh sizes and sharding rules on one device, and operation counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from diffusion_jax.runtime import presets
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


@pytest.mark.parametrize(
  ('preset', 'given', 'found'),
  [
    ('replicated', (0, 0, 0), (-1, 1, 1)),
    ('replicated', (0, 2, 0), (-1, 2, 1)),
    ('replicated', (1, 0, -1), (1, 1, -1)),
    ('fsdp', (0, 0, 0), (1, -1, 1)),
    ('fsdp', (0, 4, 0), (-1, 4, 1)),
    ('fsdp', (-1, 4, 1), (-1, 4, 1)),
    ('fsdp', (2, 4, 0), (2, 4, 1)),
    ('fsdp_tensor', (0, 0, 0), (1, -1, 2)),
    ('fsdp_tensor', (0, 0, 4), (1, -1, 4)),
    ('fsdp_tensor', (2, 0, 0), (2, -1, 2)),
  ],
)
def test_a_preset_sets_the_axes_that_are_not_given(preset, given, found):
  assert presets.sizes(preset, given) == found


@pytest.mark.parametrize(
  ('path', 'shape', 'fsdp', 'both'),
  [
    ('opt_states/model/1/0/mu/blocks/qkv/kernel', (2, 64, 3, 4, 16), '.f...', '.f.t.'),
    ('averages/ema/model/blocks/qkv/bias', (2, 3, 4, 16), '....', '..t.'),
    ('params/model/blocks/attention_out/kernel', (2, 64, 64), '.f.', '.tf'),
    ('params/model/blocks/mlp_in/kernel', (2, 64, 256), '..f', '.ft'),
    ('params/model/blocks/mlp_out/kernel', (2, 256, 64), '.f.', '.tf'),
    ('params/model/condition/label/embedding', (11, 64), '.f', '.b'),
    ('params/model/down_0_1_residual/conv_in/kernel', (3, 3, 32, 64), '...f', '..ft'),
    ('params/model/mid_0_residual/norm_out/scale', (64,), '.', 't'),
    ('params/model/up_1_0_residual/conv_out/kernel', (3, 3, 64, 32), '..f.', '..tf'),
    ('params/model/down_1_0_attention/out/kernel', (64, 64), 'f.', 'tf'),
    ('params/model/encoder/mid/residual_0/conv_in/kernel', (3, 3, 64, 64), '..f.', '..ft'),
    ('params/model/decoder/mid/attention/out/kernel', (64, 32), 'f.', 'b.'),  # One head.
    ('params/model/blocks/deep/kernel', (64, 16, 32), '..f', '..b'),  # Scanned over 64 blocks.
    ('opt_states/model/row/blocks/qkv/kernel', (64,), '.', '.'),  # Of an optimizer that factors.
    ('params/model/conv_in/kernel', (3, 3, 3, 64), '...f', '...b'),
    ('params/discriminator/conv_1/kernel', (4, 4, 64, 128), '...f', '...b'),
    ('params/model/blocks/adaln/modulation/kernel', (2, 64, 384), '..f', '..b'),
    ('params/model/odd/kernel', (3, 5), '..', '..'),
    ('step', (), '', ''),
  ],
)
def test_presets_cut_every_kind_of_array(path, shape, fsdp, both):
  letters = {'.': None, 'f': 'fsdp', 't': 'tensor', 'b': ('fsdp', 'tensor')}
  sizes = {'data': 1, 'fsdp': 4, 'tensor': 2}
  for preset, wanted in (('fsdp', fsdp), ('fsdp_tensor', both), ('replicated', '.' * len(shape))):
    spec = presets.spec_of(preset, path, shape, sizes)
    assert spec == PartitionSpec(*(letters[letter] for letter in wanted))


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
