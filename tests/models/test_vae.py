"""The autoencoder's published sizes, shapes and posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm as normal

from diffusion_jax.models.vae import AutoencoderKL, Posterior
from diffusion_jax.pretrained.compvis import autoencoder_params
from diffusion_jax.runtime.cost import flops, num_parameters

F4 = dict(channels=128, channel_mult=(1, 2, 4), num_res_blocks=2, z_channels=3, embed_channels=3)
F8 = dict(channels=128, channel_mult=(1, 2, 4, 4), num_res_blocks=2, z_channels=4, embed_channels=4)
TINY = dict(channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, z_channels=3, embed_channels=3)


@pytest.mark.parametrize('sizes, millions, factor', [(F4, 55.31, 4), (F8, 83.65, 8)])
def test_published_sizes(sizes, millions, factor):
  module = AutoencoderKL(**sizes)
  params = autoencoder_params(module)
  assert num_parameters(params) / 1e6 == pytest.approx(millions, abs=0.005)
  assert module.factor == factor


def test_f4_has_204_tensors_in_the_published_file():
  """Ours are fewer: q, k and v are one kernel and one bias, in the encoder and in the decoder."""
  count = len(jax.tree.leaves(autoencoder_params(AutoencoderKL(**F4))))
  assert count + 2 * 2 * 2 == 204


def test_flops_at_128_pixels():
  module = AutoencoderKL(**F4)
  params = autoencoder_params(module)
  images, z = jnp.zeros((1, 128, 128, 3)), jnp.zeros((1, 32, 32, 3))
  encode = flops(lambda p, x: module.apply({'params': p}, x, method='encode'), params, images)
  decode = flops(lambda p, x: module.apply({'params': p}, x, method='decode'), params, z)
  assert encode / 1e9 == pytest.approx(79.9, rel=0.01)
  assert decode / 1e9 == pytest.approx(161.2, rel=0.01)


def test_shapes_and_dtypes():
  module = AutoencoderKL(**TINY, dtype=jnp.bfloat16)
  images, noise = jnp.ones((2, 16, 24, 3)), jnp.ones((2, 4, 6, 3))
  params = module.init(jax.random.key(0), images, noise)['params']
  assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  made, posterior = module.apply({'params': params}, images, noise)
  assert made.shape == images.shape and made.dtype == jnp.float32
  assert jnp.any(made != made.astype(jnp.bfloat16))  # The decoder's last layer does not round.
  for part in posterior:
    assert part.shape == (2, 4, 6, 3) and part.dtype == jnp.float32
  with pytest.raises(ValueError, match='images: got 16x22, allowed multiples of 4'):
    module.apply({'params': params}, jnp.ones((1, 16, 22, 3)), method='encode')


def test_kl_is_that_of_gaussians():
  """Against numerical integration of q log(q / p) in one dimension."""
  mean, std = 0.7, 0.4
  grid = np.linspace(-8, 8, 200_001)
  q = normal.pdf(grid, mean, std)
  integrand = q * (normal.logpdf(grid, mean, std) - normal.logpdf(grid))
  expected = np.trapezoid(integrand, grid)
  shape = (2, 3, 1, 1)
  posterior = Posterior(jnp.full(shape, mean), jnp.full(shape, 2 * np.log(std)))
  np.testing.assert_allclose(posterior.kl(), 3 * expected, rtol=1e-5)


def test_the_posterior_samples_and_clips_its_variance():
  parameters = jnp.concatenate(
    [jnp.full((1, 1, 1, 2), 0.5), jnp.asarray([[[[100.0, -100.0]]]])], -1
  )
  posterior = Posterior.from_parameters(parameters)
  np.testing.assert_array_equal(posterior.logvar[0, 0, 0], [20, -30])
  sample = Posterior(jnp.asarray([[[[1.0]]]]), jnp.asarray([[[[np.log(4.0)]]]])).sample(3.0)
  np.testing.assert_allclose(sample, 7.0, rtol=1e-6)


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(channels=48), 'channels: got 48'),
    (dict(channel_mult=()), 'channel_mult: got'),
    (dict(z_channels=0), 'z_channels: got 0'),
  ],
)
def test_sizes_that_do_not_fit(changes, message):
  with pytest.raises(ValueError, match=message):
    AutoencoderKL(**{**TINY, **changes})
