"""The optimizer's schedule, weight decay and clipping, by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.optimizer import is_decayed, learning_rate_schedule, make_optimizer

OPTIONS = dict(
  learning_rate=1e-2,
  warmup_steps=0,
  decay='constant',
  b1=0.9,
  b2=0.999,
  eps=1e-8,
  weight_decay=0.1,
  clip_norm=1.0,
  total_steps=100,
)


def test_learning_rate_warms_up_and_decays():
  rate = learning_rate_schedule(2.0, 10, 110, 'cosine')
  rates = [float(rate(step)) for step in (0, 4, 9, 10, 60, 110)]
  assert rates == pytest.approx([0.2, 1, 2, 2, 1, 0], abs=1e-6)  # No step is lost to a rate of 0.
  flat = learning_rate_schedule(2.0, 0, 100, 'constant')
  assert float(flat(0)) == float(flat(99)) == 2.0


def test_weight_decay_spares_biases_and_norms(tiny):
  params = jax.jit(tiny().init_state)().params['model']
  decayed = is_decayed(params)
  assert decayed['blocks']['qkv']['kernel'] and decayed['condition']['label']['embedding']
  assert not decayed['blocks']['qkv']['bias']


def test_weight_decay_shrinks_kernels_and_tables_only():
  """Without a gradient an update is -learning_rate weight_decay p, or nothing."""
  params = {'layer': {'kernel': jnp.full(3, 2.0), 'bias': jnp.full(3, 2.0)}}
  params['norm'], params['label'] = {'scale': jnp.ones(2)}, {'embedding': jnp.full((2, 2), -1.0)}
  optimizer = make_optimizer(**OPTIONS)
  gradients = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(gradients, optimizer.init(params), params)
  np.testing.assert_allclose(updates['layer']['kernel'], -1e-2 * 0.1 * 2.0, rtol=1e-6)
  np.testing.assert_allclose(updates['label']['embedding'], 1e-2 * 0.1, rtol=1e-6)
  np.testing.assert_array_equal(updates['layer']['bias'], 0)
  np.testing.assert_array_equal(updates['norm']['scale'], 0)


def test_an_optimizer_that_starts_late_has_the_rate_of_the_run():
  """Adam's first step moves by the learning rate: that of step 4 of the warm-up."""
  options = {**OPTIONS, 'warmup_steps': 10, 'weight_decay': 0.0, 'clip_norm': 0.0}
  optimizer = make_optimizer(**options, first_step=4)
  params = {'kernel': jnp.ones(3)}
  updates, _ = optimizer.update({'kernel': jnp.full(3, 0.7)}, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], -0.5e-2, rtol=1e-5)
