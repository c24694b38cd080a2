"""scripts/accelerator_report.py at tiny sizes, as on a machine without TensorFlow, clu and ml-collections."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'scripts' / 'accelerator_report.py'
BLOCKED = ('tensorflow', 'clu', 'ml_collections', 'tensorflow_datasets', 'torch')
# Python runs a sitecustomize of its path at start: in the script's own processes too.
SITECUSTOMIZE = f"""
import sys

class Without:
  def __init__(self, finder):
    self.finder = finder

  def __getattr__(self, name):
    return getattr(self.finder, name)

  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in {BLOCKED}:
      return None  # As of a package that is not installed: some look without importing.
    return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def environment_of(tmp_path):
  """Variables of a machine without the packages."""
  (tmp_path / 'path').mkdir(exist_ok=True)
  (tmp_path / 'path' / 'sitecustomize.py').write_text(SITECUSTOMIZE)
  return {**os.environ, 'PYTHONPATH': str(tmp_path / 'path'), 'JAX_PLATFORMS': 'cpu'}


def run(tmp_path, *arguments):
  environment = environment_of(tmp_path)
  command = [sys.executable, str(SCRIPT), '--size=tiny', f'--out={tmp_path / "out"}', *arguments]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
  path = tmp_path / 'out' / 'accelerator-cpu-tiny.json'
  return done, json.loads(path.read_text()) if path.exists() else None


@pytest.fixture(scope='module')
def accelerator():
  sys.path.insert(0, str(SCRIPT.parent))
  try:
    yield importlib.import_module
  finally:
    sys.path.remove(str(SCRIPT.parent))


def test_the_packages_are_not_there_in_the_processes_of_these_tests(tmp_path):
  run(tmp_path, '--budget=0')
  code = f'import importlib.util as u; print([u.find_spec(name) for name in {BLOCKED}], u.find_spec("jax"))'
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'path')}
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True
  )
  assert done.stdout.startswith(f'[{", ".join(["None"] * len(BLOCKED))}] ModuleSpec'), done.stderr


@pytest.mark.slow
def test_a_second_call_goes_on_where_the_budget_ended_and_a_third_does_nothing(tmp_path):
  few = '--only=check.attention|time.matmul'
  done, record = run(tmp_path, few, '--budget=0')
  assert done.returncode == 75 and record['pieces'] == {}, done.stderr
  done, record = run(tmp_path, few)
  assert done.returncode == 0, done.stderr + done.stdout
  assert set(record['pieces']) == {'check.attention', 'time.matmul'}
  rows = record['pieces']['check.attention']['result']
  assert [row['passed'] for row in rows] == [True, True, None]
  again, unchanged = run(tmp_path, few)
  assert again.returncode == 0 and unchanged['pieces'] == record['pieces']
  text = (tmp_path / 'out' / 'accelerator-cpu-tiny.md').read_text()
  for word in (record['machine']['jax'], '--size=tiny', record['pieces']['time.matmul']['date']):
    assert word in text


@pytest.mark.slow
def test_a_goal_and_a_system_are_measured(tmp_path):
  done, record = run(tmp_path, '--only=goal.sample|train.dit-s')
  assert done.returncode == 0, done.stdout + done.stderr
  goal, skipped = (record['pieces'][n]['result'] for n in ('goal.sample', 'train.dit-s.cudnn'))
  assert goal['images_per_s'] > 0 and goal['torch'] == {'skipped': 'not installed'}
  assert skipped == {'skipped': 'needs an NVIDIA GPU'}
  text = (tmp_path / 'out' / 'accelerator-cpu-tiny.md').read_text()
  assert '| DiT-B/2, guided sampling | 2 |' in text and '| dit-s.xla | 4 |' in text


@pytest.mark.full
def test_every_piece_runs_and_every_check_passes_on_the_cpu(tmp_path, accelerator):
  done, record = run(tmp_path, '--budget=1100')
  assert done.returncode == 0, done.stdout + done.stderr
  assert list(record['pieces']) == accelerator('accelerator.pieces').names_of('tiny')
  for name, piece in record['pieces'].items():
    if name.startswith('check.'):
      assert any(row['passed'] for row in piece['result']), name
      assert not any(row['passed'] is False for row in piece['result']), piece['result']
    elif '.cudnn' in name:
      assert piece['result'] == {'skipped': 'needs an NVIDIA GPU'}
    else:
      assert piece['result']['flops_per_s'] > 0, name
      if name in ('goal.dit-s', 'goal.unet', 'goal.sample'):
        assert piece['result']['torch'] == {'skipped': 'not installed'}


def test_a_failing_piece_is_recorded_and_the_others_go_on(accelerator, tmp_path, monkeypatch):
  worker, pieces = accelerator('accelerator.worker'), accelerator('accelerator.pieces')

  def fails():
    raise RuntimeError('no such kernel')

  monkeypatch.setattr(pieces, 'pieces', lambda size, training: {'a': fails, 'b': lambda: {'x': 1}})
  worker.work('tiny', ['a', 'b'], tmp_path, 10.0)
  a, b = (json.loads((tmp_path / f'{name}.json').read_text()) for name in 'ab')
  assert a['error'] == 'RuntimeError: no such kernel' and b['result'] == {'x': 1}


def test_full_sizes_are_those_of_the_configs(accelerator):
  from configs import ddpm_cfg, dit_cfg, dit_xl, vae

  systems = accelerator('accelerator.systems')
  unet = ddpm_cfg.get_config()
  assert {**systems.FULL.unet, 'attention': 'auto', 'remat': 'blocks'} == unet.model.unet.to_dict()
  assert (systems.NUM_CLASSES['unet'], systems.FULL.image_size) == (100, unet.data.image_size)
  assert systems.FULL.unet_batch == unet.train.batch_size
  first_stage = vae.get_config()
  assert systems.FULL.vae.items() <= first_stage.vae.to_dict().items()
  assert systems.FULL.vae_batch == first_stage.train.batch_size
  for name, config in (('b', dit_cfg.get_config()), ('xl', dit_xl.get_config())):
    dit = config.model.dit
    assert systems.FULL.dit[name] == (dit.hidden_size, dit.depth, dit.num_heads)


def test_operations_are_those_of_the_published_networks(accelerator):
  """FLOP an image forward: 12.1 G of DiT-S/2 and 46.0 G of DiT-B/2; 79.9 + 161.2 G of KL-f4 at 128 px."""
  import jax.numpy as jnp

  systems, speeds = accelerator('accelerator.systems'), accelerator('accelerator.speeds')
  for name, expected in (('s', 12.1e9), ('b', 46.0e9)):
    module = systems.make_dit(systems.FULL, name, 'xla', jnp.float32)
    found = speeds.forward_flops(module, systems.FULL.latent_shape)
    assert found == pytest.approx(expected, rel=0.01)
  found, _ = speeds.autoencoder_flops(systems.FULL, jnp.float32)
  assert found == pytest.approx(79.9e9 + 161.2e9, rel=0.01)


def test_goals_are_measured_on_the_systems_that_they_name(accelerator):
  """FLOP an image: 3 x 12.1 G of DiT-S/2 in training, 100 x 46.0 G of DiT-B/2 in 50 guided steps."""
  from diffusion_jax.benchmarks.speed import forward_flops
  from diffusion_jax.experiment.facts import autoencoder_facts

  goal_speeds, goals = accelerator('accelerator.goal_speeds'), accelerator('accelerator.goals')
  names = [name for name in goals.names('full') if name not in ('dit-b', 'dit-l', 'features')]
  made = {name: goal_speeds.experiment_of('full', name, 64) for name in names}
  assert made['dit-s'].x0_shape == made['dit-xl'].x0_shape == made['sample'].x0_shape == (32, 32, 4)
  assert forward_flops(made['dit-s']) == pytest.approx(12.1e9, rel=0.01)
  sample = made['sample']
  assert forward_flops(sample) == pytest.approx(46.0e9, rel=0.01)
  assert (sample.config.sample.num_steps, sample.config.sample.batch_size) == (50, 64)
  assert sample.config.sample.cfg_scale != 1
  decoder = autoencoder_facts(sample)['decode_flops_per_image']
  assert decoder < 1e-3 * 100 * 46.0e9  # PyTorch decodes nothing.
  found = autoencoder_facts(made['decode'])['decode_flops_per_image']
  assert found == pytest.approx(161.2e9, rel=0.01)
  unet = made['unet'].config
  assert unet.train.batch_size == 64 and made['unet'].x0_shape == (128, 128, 3)
  assert unet.model.options['dropout'] == 0 and unet.model.options['remat'] == 'none'


def goal_of(speed, **torch):
  facts = {'batch_size': 256, 'images_per_s': speed, 'flops_per_s': 300e12}
  return {'result': {**facts, 'compile_s': 9.0, 'peak_bytes': 2**33, 'torch': torch}}


def test_a_goal_is_reached_or_not(accelerator):
  sections = accelerator('accelerator.sections')
  torch = {'images_per_s': 7000.0, 'version': '2.11'}
  pieces = {
    'goal.dit-s': goal_of(9100.0, **torch),
    'goal.dit-b': goal_of(2199.0, skipped='not installed'),
    'goal.unet': {'error': 'RuntimeError: no | kernel\nmore'},
  }
  record = {'machine': {'device': 'NVIDIA H200'}, 'size': 'full', 'pieces': pieces}
  text = '\n'.join(sections.goals_section(record))
  rows = {line.split('|')[1].strip(): line for line in text.splitlines() if line.startswith('| ')}
  assert '| aim reached | 7,000 | 1.30x | aim reached |' in rows['DiT-S/2 on latents, training']
  assert (
    '| 2,199 | 30.3% | 2,200, 3,000 | **not reached** |' in rows['DiT-B/2 on latents, training']
  )
  assert 'error: RuntimeError: no / kernel' in rows['UNet on pixels, training']
  assert 'DiT-B/2 on latents, training: PyTorch was not measured, not installed' in text
  record['machine']['device'] = 'TPU v4'
  assert 'not reached' not in '\n'.join(sections.goals_section(record))


def test_batches_are_halved_until_they_fit(accelerator):
  speeds = accelerator('accelerator.speeds')

  def measure(batch_size):
    if batch_size > 40:
      raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory while trying to allocate')
    return {'batch_size': batch_size}

  assert speeds.fit(measure, 256) == {'batch_size': 32}
  with pytest.raises(ZeroDivisionError):
    speeds.fit(lambda size: 1 / 0, 256)


def test_a_wrong_value_and_a_nan_fail_a_check(accelerator):
  checks, markdown = accelerator('accelerator.checks'), accelerator('accelerator.markdown')
  rows = [
    checks.row('a', 1e-6, 1e-5),
    checks.row('b', 1e-4, 1e-5),
    checks.row('c', float('nan'), 1),
  ]
  record = {'pieces': {'check.x': {'result': rows}, 'train.y': {'error': 'killed'}}}
  assert markdown.failures(record) == ['check.x: b', 'check.x: c', 'train.y']


def test_paper_peaks_tell_the_chips_apart(accelerator):
  peak_of = accelerator('accelerator.cells').peak_of
  assert peak_of('NVIDIA H100 80GB HBM3') == peak_of('NVIDIA H200') == 989e12
  assert peak_of('NVIDIA H100 PCIe') == 756e12 and peak_of('cpu') is None


def test_a_folder_without_wheels_is_refused(accelerator, tmp_path):
  with pytest.raises(SystemExit, match='--wheels'):
    accelerator('accelerator.wheels').use(tmp_path)


def test_an_archive_that_is_not_there_is_refused(tmp_path):
  done, record = run(tmp_path, '--cifar=nowhere.tar')
  assert done.returncode == 2 and 'nowhere.tar does not exist' in done.stderr and record is None
