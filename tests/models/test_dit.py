"""Options of the DiT that change how it is computed, not what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import check_devices, create
from tests.conftest import tiny_mapping
from tests.models.test_backbones import SMALL, build, inputs, shaken


def small(**changes):
  return build('dit', **{**SMALL['dit'], **changes})


@pytest.mark.parametrize('change', [{'remat': 'blocks'}, {'remat': 'dots'}, {'unroll': 0}])
def test_remat_and_unroll_change_neither_parameters_nor_output_nor_gradients(change):
  plain, again = small(), small(**change)
  key = jax.random.key(1)
  params, same = (jax.jit(module.init)(key, *inputs())['params'] for module in (plain, again))
  jax.tree.map(np.testing.assert_array_equal, params, same)
  params = shaken(params)

  def run(module):
    def loss(params):
      out = module.apply({'params': params}, *inputs(), train=True)
      return jnp.mean(out**2), out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  (_, expected), expected_grads = run(plain)
  (_, found), found_grads = run(again)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found_grads, expected_grads
  )
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected_grads)) > 1e-3


@pytest.mark.parametrize('unroll, expected', [(1, 1), (2, 2), (0, 4)])
def test_the_compiler_sees_so_many_blocks_at_once(unroll, expected):
  module = small(depth=4, unroll=unroll)
  params = jax.eval_shape(module.init, jax.random.key(1), *inputs())
  traced = jax.make_jaxpr(lambda params: module.apply(params, *inputs()))(params)
  (scan,) = [e for e in traced.eqns if e.primitive.name == 'scan' and e.params['length'] == 4]
  assert scan.params['unroll'] == expected


def test_the_mlp_is_as_wide_as_mlp_ratio_says():
  shapes = jax.eval_shape(small(mlp_ratio=2.5).init, jax.random.key(1), *inputs())['params']
  assert shapes['blocks']['mlp_in']['kernel'].shape == (2, 32, 80)  # depth, hidden_size, 2.5 of it.


@pytest.mark.slow
@pytest.mark.unoptimised
def test_remat_keeps_less_for_the_backward_pass():
  """What the linearised function holds, for 8 blocks of which plain ones keep every activation."""

  def held(remat):
    module = small(depth=8, remat=remat)
    params = jax.jit(module.init)(jax.random.key(1), *inputs())['params']
    _, backward = jax.vjp(lambda p: module.apply({'params': p}, *inputs()), params)
    kept = sum(x.size for x in jax.tree.leaves(backward) if isinstance(x, jax.Array))
    return kept - sum(p.size for p in jax.tree.leaves(params))

  assert 0 < held('blocks') < held('dots') and held('blocks') < 0.5 * held('none')
  assert held('dots') < 0.9 * held('none')


def test_frequency_shift_changes_the_time_sinusoids_only():
  params = shaken(jax.jit(small().init)(jax.random.key(1), *inputs())['params'])
  x, time, condition = inputs()
  published, shifted = (small(frequency_shift=shift) for shift in (0, 1))

  def difference(time):
    outputs = [m.apply({'params': params}, x, time, condition) for m in (published, shifted)]
    return float(jnp.abs(outputs[0] - outputs[1]).max())

  assert difference(jnp.zeros(3)) < 1e-6 < 1e-3 < difference(time)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(attention='cudnn'), "attention: got 'cudnn' with dtype float32, allowed 'auto'"),
    (dict(attention='flash'), "attention: got 'flash', allowed"),
    (
      dict(attention='cudnn', dtype=jnp.bfloat16, hidden_size=40),
      "attention: got 'cudnn' with 20 channels a head",
    ),
    (dict(frequency_shift=2), 'frequency_shift: got 2, allowed 0, 1'),
  ],
)
def test_options_that_cannot_work(changes, message):
  with pytest.raises(ValueError, match=message):
    small(**changes)
  small(attention='cudnn', dtype=jnp.bfloat16)


def test_cudnn_is_refused_by_the_config_or_by_the_devices(tmp_path):
  cudnn = {'model.dit.attention': 'cudnn'}
  with pytest.raises(InputError, match=r"config.model.dit.attention: got 'cudnn' with dtype float"):
    create(tiny_mapping(tmp_path, dtype='float32', **cudnn))
  for dtype in ('auto', 'bfloat16'):
    experiment = create(tiny_mapping(tmp_path, dtype=dtype, **cudnn))
    if jax.default_backend() == 'cpu':
      with pytest.raises(InputError, match="attention: got 'cudnn', allowed 'auto', 'xla' on cpu"):
        check_devices(experiment)


def test_what_the_blocks_add_can_be_given():
  """Where it is given they do not run: the output is the same, and no matrix product of theirs is left."""
  module = small()
  params = shaken(jax.jit(module.init)(jax.random.key(1), *inputs())['params'])

  def run(params, residual=None):
    return module.apply({'params': params}, *inputs(), residual=residual, mutable=['residuals'])

  expected, kept = jax.jit(run)(params)
  residual = kept['residuals']['residual']
  assert residual.dtype == jnp.float32 and float(jnp.abs(residual).max()) > 0.1
  found, none = jax.jit(run)(params, residual)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert not none and 'scan' not in str(jax.make_jaxpr(run)(params, residual))
