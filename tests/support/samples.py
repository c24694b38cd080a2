"""Sample sets as tests look at them."""

import numpy as np

from diffusion_jax.sampling import sample_set


def load_samples(folder, num_samples):
  """Samples 0..num_samples - 1 in memory: images (N,H,W,C) uint8, labels (N,) int32."""
  batch = sample_set.open_parts(folder, num_samples).read(np.arange(num_samples))
  return batch['image'], batch['label']
