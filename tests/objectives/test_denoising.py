"""The denoising loss against closed forms: its target, hidden labels, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.process import Process
from diffusion_jax.objectives.denoising import Denoising
from diffusion_jax.randomness import example_keys, purpose_key
from tests.diffusion.test_schedules import build

X0 = np.random.default_rng(0).normal(size=(6, 4, 4, 3)).astype(np.float32)


def zero(x, time, condition):
  return jnp.zeros_like(x)


def loss_of(network, prediction='v', x0=X0, train=True, **changes):
  loss = Denoising(**{'class_dropout': 0.0, **changes}).loss
  settings = dict(process=Process(build('cosine'), prediction), null_label=10, train=train)
  keys = example_keys(purpose_key(0, 'test'), jnp.arange(len(x0)))
  return loss(network, x0, {'label': jnp.arange(len(x0)) % 10}, keys, **settings)


def test_loss_of_a_perfect_network_is_zero_and_of_a_zero_network_is_the_target_power():
  def perfect(x_t, time, condition):  # Knows X0, so it knows eps, so it knows v.
    alpha, sigma = build('cosine')((time + 1) / 1000)
    alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
    eps = (x_t - alpha * X0) / sigma
    return alpha * eps - sigma * X0

  np.testing.assert_allclose(loss_of(perfect), 0, atol=1e-6)
  np.testing.assert_allclose(
    loss_of(zero, prediction='x0'), np.mean(X0**2, axis=(1, 2, 3)), rtol=1e-5
  )


def test_class_dropout_replaces_that_share_by_the_null_label():
  """Each label by a draw of its own, none of the held-out ones."""
  labels, many = [], np.zeros((4000, 1, 1, 1), np.float32)

  def network(x, time, condition):
    labels.append(np.asarray(condition['label']))
    return x

  for drop, train in ((0.0, True), (0.1, True), (0.999, True), (0.999, False)):
    loss_of(network, x0=many, train=train, class_dropout=drop)
  hidden = [y == 10 for y in labels]
  for y, is_hidden in zip(labels, hidden):
    np.testing.assert_array_equal(y[~is_hidden], (np.arange(4000) % 10)[~is_hidden])
  deviation = np.sqrt(4000 * 0.1 * 0.9)
  assert abs(hidden[1].sum() - 400) < 4 * deviation
  assert hidden[0].sum() == hidden[3].sum() == 0 and hidden[2].sum() > 3980


@pytest.mark.parametrize('prediction', ['x0', 'v'])
def test_min_snr_weights_the_loss_in_training_only(prediction):
  """By min(SNR, gamma) for x0, times sigma^2 = 1 / (1 + SNR) for v (Hang et al. 2023)."""
  seen = {}

  def network(x, time, condition):
    seen['t'] = (np.asarray(time, np.float64) + 1) / 1000
    return zero(x, time, condition)

  many = np.random.default_rng(1).normal(size=(64, 2, 2, 1)).astype(np.float32)
  plain = loss_of(network, prediction, many)
  weighted, held_out = (
    loss_of(network, prediction, many, train, weighting='min_snr') for train in (True, False)
  )
  alpha, sigma = jax.vmap(build('cosine'))(jnp.asarray(seen['t']))
  snr = np.square(np.asarray(alpha, np.float64) / sigma)
  weight = np.minimum(snr, 5) * (1 if prediction == 'x0' else 1 / (1 + snr))
  assert (snr > 5).sum() > 10 and (snr < 5).sum() > 10
  np.testing.assert_allclose(weighted, weight * plain, rtol=1e-3)
  np.testing.assert_array_equal(held_out, plain)
