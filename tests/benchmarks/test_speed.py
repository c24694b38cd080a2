"""--mode=bench with config.bench.name=speed: random numbers, no data; every part has its row."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.runtime import chips, hosts
from tests.conftest import tiny_mapping

PIXELS = {'bench.name': 'speed', 'bench.repeats': 2, 'bench.speed.seconds': 0.0}
LATENT = {
  **PIXELS,
  'space': 'latent',
  'data.image_size': 16,
  'vae.channels': 32,
  'vae.channel_mult': (1, 1),
  'vae.num_res_blocks': 1,
  'vae.batch_size': 4,
}


def bench(tmp_path, capsys, **changes):
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode('bench', mapping, {}, tmp_path / 'run', as_json=True)
  assert not (tmp_path / 'data').exists()  # Nothing was prepared.
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_training_and_sampling_in_pixels(tmp_path, capsys):
  changes = {**PIXELS, 'bench.speed.parts': ('train', 'sample')}
  found = bench(tmp_path, capsys, **changes)
  step, plain, guided = (
    found[title] for title in ('training step', '3 steps of sampling', 'the same, guidance 2')
  )
  assert step['batch_size'] == plain['batch_size'] == 16 and len(step['times']) == 2
  forward = step['flops'] / 3 / 16
  assert plain['flops'] == 16 * 3 * forward and guided['flops'] == 2 * plain['flops']
  # 4 x 4 tokens of width 32 through two blocks: 24 d^2 + 4 N d a token, adaLN, embeddings, ends.
  assert 2 * 16 * (24 * 32**2 + 4 * 16 * 32) < forward < 2e6
  for part in (step, plain, guided):
    assert part['images_per_s'] == pytest.approx(16 / np.median(part['times']))
  assert found['devices'] == jax.device_count() and 'data' not in found


@pytest.mark.full
@pytest.mark.unoptimised
def test_a_latent_system_needs_no_autoencoder(tmp_path, capsys):
  found = bench(tmp_path, capsys, **{**LATENT, 'bench.speed.parts': ('train', 'autoencoder')})
  assert found['encoding']['batch_size'] == 4 and found['decoding']['flops'] > 0
  assert found['training step']['flops'] > 0
  table = (tmp_path / 'run' / 'bench-speed.json').read_text()
  assert json.loads(table) == found


def test_unknown_parts_are_refused(tmp_path, capsys):
  with pytest.raises(InputError, match=r'config\.bench\.speed\.parts: got fly, allowed train'):
    bench(tmp_path, capsys, **{**PIXELS, 'bench.speed.parts': ('fly',)})


@pytest.mark.parametrize('name', ['data', 'evaluation', 'against_torch'])
def test_what_is_compared_with_one_host_runs_in_one_process(tmp_path, capsys, monkeypatch, name):
  monkeypatch.setattr(hosts, 'count', lambda: 2)
  message = f'got 2 processes, allowed 1 for config.bench.name {name}'
  with pytest.raises(InputError, match=message):
    bench(tmp_path, capsys, **{'bench.name': name, 'eval.features.name': 'inception'})


def test_limits_are_those_of_the_table_or_measured():
  assert chips.published('NVIDIA H100 80GB HBM3', 'gpu', 'bfloat16').flops_per_s == 989e12
  assert chips.published('NVIDIA H100 80GB HBM3', 'gpu', 'float32').flops_per_s == 989e12 / 2
  assert chips.published('TPU v5 lite', 'tpu', 'float32').flops_per_s == 197e12
  assert chips.published('NVIDIA L40S', 'gpu', 'bfloat16').flops_per_s == 362e12
  assert chips.published('NVIDIA L4', 'gpu', 'bfloat16').flops_per_s == 121e12
  assert chips.published('cpu', 'cpu', 'float32') is None
  found = chips.measured('float32')
  assert 1e9 < found.flops_per_s < 1e14 and 1e8 < found.bytes_per_s < 1e13
