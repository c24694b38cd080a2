"""LPIPS is torch-fidelity's: recorded by tests/fixtures/make_lpips.py."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.errors import InputError
from diffusion_jax.models.perceptual import LPIPS
from diffusion_jax.pretrained import lpips
from tests.fixtures.parity_weights import values, weights

RECORDED = json.loads((Path(__file__).parents[1] / 'fixtures' / 'lpips.json').read_text())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """VGG16 and the linear layers, in a file each."""
  folder = tmp_path_factory.mktemp('lpips')
  state = weights(RECORDED['shapes'])
  for name in ('features', 'lin'):
    part = {k: v for k, v in state.items() if k.startswith(name)}
    save_file(part, folder / f'{name}.safetensors')
  return folder


@pytest.mark.slow
@pytest.mark.unoptimised
def test_distances_are_those_of_torch_fidelity(folder):
  params = lpips.load(folder)
  images = [
    np.clip(values(name, (3, 32, 24, 3)) * 60 + 128, 0, 255).astype(np.uint8) / np.float32(127.5)
    - 1
    for name in ('a', 'b')
  ]

  @jax.jit
  def distance(a, b):
    return jax.value_and_grad(lambda a: LPIPS().apply({'params': params}, a, b).sum())(a)

  images[0][2], images[1][2] = images[0][1], images[0][1]  # The last pair is of equal images.
  total, gradient = distance(*images)
  np.testing.assert_allclose(total, sum(RECORDED['distances'][:2]), rtol=1e-4)
  assert np.isfinite(gradient).all()


def test_what_is_missing_is_said_with_where_to_get_it(folder, tmp_path):
  for path in (tmp_path / 'gone', tmp_path, folder / 'lin.safetensors'):
    with pytest.raises(
      InputError, match=r'config\.objective\.autoencoder\.perceptual_weights.*vgg16-397923af\.pth'
    ):
      lpips.load(path)
