"""What is measured of images in [-1, 1]."""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.pixels import psnr


def test_psnr_is_the_textbooks():
  """An error of one level of 255: 20 log10(255) dB."""
  np.testing.assert_allclose(psnr(jnp.full((1, 2, 2, 3), 2 / 255)), 20 * np.log10(255), rtol=1e-5)
