"""The networks that PyTorch is measured with are ours: the same outputs from the same parameters."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.benchmarks.against_torch import shaken
from diffusion_jax.benchmarks.torch_networks import constants, dit, tensors_of, unet
from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet
from tests.conftest import tiny_mapping

torch = pytest.importorskip('torch')

SMALL = {'channels': 32, 'channel_mult': (1, 2), 'num_res_blocks': 1, 'dropout': 0.0}
DDPM = {
  'num_heads': 1,
  'scale_shift_norm': False,
  'resample': 'conv',
  'frequency_shift': 1,
  'norm_epsilon': 1e-6,
}
ADM = {'head_channels': 16, 'resample': 'residual'}
NETWORKS = {
  'dit': (dit, DiT(hidden_size=48, depth=2, num_heads=3, num_classes=5)),
  'dit, unconditional': (dit, DiT(hidden_size=32, depth=1, num_heads=2, frequency_shift=1)),
  'ddpm': (unet, UNet(**SMALL, **DDPM, num_classes=5)),
  'adm': (unet, UNet(**SMALL, **ADM, num_classes=5)),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_are_ours(name):
  apply, module = NETWORKS[name]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 8, 8, 3), np.float32)
  times, label = np.float32([3.0, 700.5]), np.int32([1, 4])
  init = jax.jit(lambda: module.init(jax.random.key(0), x, times, {'label': label})['params'])
  params = shaken(init())
  ours = jax.jit(lambda p: module.apply({'params': p}, x, times, {'label': label}))(params)
  with torch.no_grad():
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2)), torch.from_numpy(times)
    tensors = tensors_of(torch, params, 'cpu') | constants(torch, module, (8, 8), 'cpu')
    theirs = apply(torch, module, tensors, *inputs, torch.from_numpy(label).long())
  theirs = theirs.numpy().transpose(0, 2, 3, 1)
  assert np.abs(ours).max() > 0.1
  np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


BENCH = {
  'bench.name': 'against_torch',
  'bench.repeats': 2,
  'bench.against_torch.modes': 'eager',
  'sample.cfg_scale': 1.0,
}


@pytest.mark.full
def test_guided_sampling_alone_is_measured(tmp_path, capsys):
  given = {'bench.against_torch.parts': ('sample',), 'sample.cfg_scale': 3.0}
  run_mode('bench', tiny_mapping(tmp_path, **BENCH | given), {}, tmp_path / 'run')
  found = json.loads((tmp_path / 'run' / 'bench-against_torch.json').read_text())
  assert list(found['seconds']) == ['sample'] and 'guidance 3' in capsys.readouterr().out


@pytest.mark.slow
def test_both_are_measured_in_turns(tmp_path, capsys):
  run_mode('bench', tiny_mapping(tmp_path, **BENCH), {}, tmp_path / 'run')
  found = json.loads((tmp_path / 'run' / 'bench-against_torch.json').read_text())
  for times in found['seconds'].values():
    assert [len(t) for t in times.values()] == [2, 2] and min(min(t) for t in times.values()) > 0
  text = capsys.readouterr().out
  assert 'PyTorch, eager' in text and '1.00x' in text and torch.__version__ in text


@pytest.mark.parametrize(
  'given',
  [{'sample.guidance.rescale': 0.5}, {'sample.cache.interval': 2}, {'sampler.name': 'heun'}],
)
def test_sampling_that_pytorch_does_not_have_here_is_refused(tmp_path, given):
  with pytest.raises(InputError, match=r'config\.bench\.against_torch\.parts: .*one pass a step'):
    run_mode('bench', tiny_mapping(tmp_path, **BENCH, **given), {}, tmp_path / 'run')


def test_a_network_that_pytorch_does_not_have_here_is_refused(tmp_path):
  dropout = {'model.name': 'unet', 'model.unet.dropout': 0.1}
  with pytest.raises(InputError, match=r'config\.bench\.against_torch\.modes: .*dropout 0\.1'):
    run_mode('bench', tiny_mapping(tmp_path, **BENCH, **dropout), {}, tmp_path / 'run')
