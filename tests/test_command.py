"""A user's mistake ends with exit code 2 and one clear message, before anything is compiled.

Every case runs main.py in a process of its own, as a user would; those of bad input are forks of one
that has imported JAX.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
QUICK = '--config=configs/quickstart.py'
PREPARE = ['--config=configs/data.py', '--workdir={dir}', '--mode=prepare']
# Flags, and parts of the message: where, what was found, what is allowed. {dir} is an empty folder.
CASES = {
  'unknown mode': ([QUICK, '--workdir={dir}', '--mode=trian'], ["'trian'", 'train', 'nearest']),
  'unknown flag': ([QUICK, '--workdir={dir}', '--workdirr=x'], ['workdirr']),
  'no config': (['--workdir={dir}'], ['--config is missing']),
  'unknown config': (
    ['--config=configs/quickstrat.py', '--workdir={dir}'],
    ['configs/quickstrat.py', "nearest 'configs/quickstart.py'"],
  ),
  'unknown name of a config': (
    ['--config=quickstrat', '--workdir={dir}'],
    ["'quickstrat'", "nearest 'quickstart'"],
  ),
  'no workdir': ([QUICK], ['--workdir is missing']),
  'unwritable workdir': ([QUICK, '--workdir=/dev/null/run'], ['/dev/null/run', 'cannot write']),
  'unknown model': ([QUICK, '--workdir={dir}', '--config.model.name=dti'], ["'dti'", 'dit, unet']),
  'unknown sampler': (
    [QUICK, '--workdir={dir}', '--config.sampler.name=dpm'],
    ['config.sampler.name', "'dpm'", 'ddim, ddpm'],
  ),
  'unknown field': (
    [QUICK, '--workdir={dir}', '--config.model.dit.dept=8'],
    ['--config.model.dit.dept: no such field', "nearest 'model.dit.depth'"],
  ),
  'unknown section': ([QUICK, '--workdir={dir}', '--config.zzz.q=8'], ['--config.zzz']),
  'wrong type': (
    [QUICK, '--workdir={dir}', '--config.train.batch_size=many'],
    ['config.train.batch_size', 'many'],
  ),
  'wrong tuple': (
    [QUICK, '--workdir={dir}', '--config.sample.labels=(1.5,)'],
    ['config.sample.labels', '(1.5,)'],
  ),
  'seed': (
    [QUICK, '--workdir={dir}', f'--config.seed={2**63}'],
    ['config.seed', str(2**63), '2^63'],
  ),
  'width of no network': (
    [QUICK, '--workdir={dir}', '--config.model.dit.hidden_size=4000000'],
    ['config.model.dit.hidden_size', '4000000', '65,536'],
  ),
  'timesteps of no table': (
    [QUICK, '--workdir={dir}', '--config.schedule.cosine.num_timesteps=1000000000'],
    ['config.schedule.cosine.num_timesteps', '1000000000', '1..100000'],
  ),
  'discriminator of larger images': (
    [
      '--config=configs/cifar10_vae.py',
      '--workdir={dir}',
      '--config.objective.autoencoder.discriminator_layers=4',
      '--config.objective.autoencoder.discriminator_start=100',
    ],
    ['config.objective.autoencoder.discriminator_layers', 'got 4', '1..3'],
  ),
  'patch': (
    [QUICK, '--workdir={dir}', '--config.model.dit.patch_size=3'],
    ['config.model.dit.patch_size', 'got 3', '[1, 2, 4, 8]'],
  ),
  'heads': (
    [QUICK, '--workdir={dir}', '--config.model.dit.num_heads=3'],
    ['config.model.dit.hidden_size: got 128', 'num_heads 3', 'nearest 129'],
  ),
  'batch and devices': (
    [QUICK, '--workdir={dir}', '--config.train.batch_size=100'],
    ['config.train.batch_size', 'got 100', 'multiples of the 8 devices', 'nearest 96'],
  ),
  'mesh': ([QUICK, '--workdir={dir}', '--config.mesh.fsdp=3'], ['config.mesh', '8 devices']),
  'steps above T': (
    [QUICK, '--workdir={dir}', '--config.sample.num_steps=1001'],
    ['config.sample.num_steps', 'got 1001', 'nearest 1000', 'shifted'],
  ),
  'label count': (
    [QUICK, '--workdir={dir}', '--config.num_classes=12', '--config.data.dir={dir}/data'],
    ['config.num_classes', 'got 12', 'allowed 10'],
  ),
  'sample label': (
    [QUICK, '--workdir={dir}', '--config.sample.labels=(3, 10)'],
    ['config.sample.labels', '[10]', '0..9'],
  ),
  'clip in latent space': (
    [QUICK, '--workdir={dir}', '--config.space=latent', '--config.sample.clip_x0=True'],
    ['config.sample.clip_x0', 'latent'],
  ),
  'eps diverges': (
    [QUICK, '--workdir={dir}', '--config.process.prediction_type=eps'],
    ['config.process.prediction_type', "'eps'", "allowed 'v'"],
  ),
  'eps undefined': (
    [
      QUICK,
      '--workdir={dir}',
      '--config.process.prediction_type=eps',
      '--config.schedule.name=rectified_flow',
      '--config.sample.clip_x0=True',
    ],
    ['config.process.prediction_type', 'does not determine x0'],
  ),
  'eps without a signal at the end': (
    [
      QUICK,
      '--workdir={dir}',
      '--config.process.prediction_type=eps',
      '--config.schedule.cosine.zero_terminal_snr=True',
      '--config.sample.clip_x0=True',
      '--config.sample.spacing=leading',
    ],
    ['config.process.prediction_type', "'eps'", 'alpha is 0', "allowed 'v'"],
  ),
  'edm without a signal at the end': (
    [
      QUICK,
      '--workdir={dir}',
      '--config.process.prediction_type=edm',
      '--config.schedule.name=rectified_flow',
    ],
    ['config.process.prediction_type', "'edm'", 'alpha is 0', "allowed 'v'"],
  ),
  'guidance without classes': (
    [QUICK, '--workdir={dir}', '--config.num_classes=0', '--config.sample.cfg_scale=2'],
    ['config.sample.cfg_scale', 'got 2', 'unconditional'],
  ),
  'guidance without label drop': (
    [
      QUICK,
      '--workdir={dir}',
      '--config.objective.denoising.class_dropout=0.0',
      '--config.sample.cfg_scale=2',
    ],
    ['config.sample.cfg_scale', 'class_dropout'],
  ),
  'sample before training': ([QUICK, '--workdir={dir}', '--mode=sample'], ['{dir}', 'train first']),
  'evaluate before training': ([QUICK, '--workdir={dir}/no', '--mode=evaluate'], ['train first']),
  'several at once': (
    [QUICK, '--workdir={dir}', '--config.train.batch_size=0', '--config.process.prediction_type=w'],
    ['2 problems', 'config.train.batch_size: got 0', "config.process.prediction_type: got 'w'"],
  ),
  'no source': (PREPARE, ['config.data.source is empty', 'TFDS name']),
  'no such source': (
    [*PREPARE, '--config.data.source={dir}/gone'],
    ['config.data.source', '{dir}/gone', 'does not exist'],
  ),
  'no such archive': (
    [*PREPARE, '--config.data.source={dir}/gone.tar.gz'],
    ['{dir}/gone.tar.gz: no such file'],
  ),
  'a source without images': (
    [*PREPARE, '--config.data.source=tests/fixtures'],
    ['tests/fixtures: no images in it', 'looked for', '.jpeg'],
  ),
  'no such class list': (
    [*PREPARE, '--config.data.source=digits', '--config.data.class_list=cmcc'],
    ['config.data.class_list', "'cmcc'", "'cmc', 'kaggle'"],
  ),
  'a class list that matches nothing': (
    [*PREPARE, '--config.data.source=digits', '--config.data.dir={dir}/data'],
    ['digits: none of the 100 classes', 'found 10 classes', 'class_list=all'],
  ),
  'a holdout beyond the data': (
    [QUICK, '--workdir={dir}', '--config.data.dir={dir}/data', '--config.data.holdout=1795'],
    ['config.data.holdout: got 1795', 'allowed 10..1787'],
  ),
  'a data folder that cannot be written': (
    [QUICK, '--workdir={dir}', '--config.data.dir=/dev/null/data'],
    ['config.data.dir', '/dev/null/data'],
  ),
  'training on what is not prepared': (
    ['--config=configs/data.py', '--workdir={dir}', '--config.data.dir={dir}/data'],
    ["no prepared data 'imagenet100', 128 px", '{dir}/data', '--mode=prepare'],
  ),
  'json elsewhere': ([QUICK, '--workdir={dir}', '--json'], ['--json', 'describe']),
  'fields elsewhere': ([QUICK, '--workdir={dir}', '--fields'], ['--fields', 'describe']),
  'fields without their mode': (['--fields'], ['--fields', '--mode=train', 'describe']),
  'unknown flag beside fields': (['--mode=describe', '--fields', '--workdirr=x'], ['workdirr']),
  'unknown field beside fields': (
    ['--mode=describe', '--fields', '--config.trian.num_steps=1'],
    ['--config.trian.num_steps', "nearest 'train.num_steps'"],
  ),
  'stray argument': ([QUICK, '--workdir={dir}', 'depth=8'], ['depth=8']),
}


def environment(devices):
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'JAX_LOG_COMPILES': '1',
  }


def main(*arguments, devices=8):
  return subprocess.run(
    [sys.executable, 'main.py', *arguments],
    cwd=ROOT,
    env=environment(devices),
    capture_output=True,
    text=True,
    timeout=100,
  )


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """Case -> what it printed and returned, and its folder."""
  folders = {name: tmp_path_factory.mktemp('run') for name in CASES}
  cases = {name: [a.format(dir=folders[name]) for a in CASES[name][0]] for name in CASES}
  folder = tmp_path_factory.mktemp('cases')
  (folder / 'cases.json').write_text(json.dumps(cases))
  files = [str(folder / 'cases.json'), str(folder / 'results.json')]
  command = [sys.executable, '-m', 'tests.support.forked_main', *files]
  subprocess.run(command, cwd=ROOT, env=environment(8), check=True, timeout=600)
  found = json.loads((folder / 'results.json').read_text())
  return {name: (SimpleNamespace(**found[name]), folders[name]) for name in CASES}


@pytest.mark.parametrize('name', CASES)
def test_bad_input(results, name):
  result, folder = results[name]
  message = '\n'.join(
    line for line in result.stderr.splitlines() if not line.startswith(('WARNING', 'Compiling'))
  )
  assert result.returncode == 2, result.stderr
  assert 'Traceback' not in result.stderr
  for part in CASES[name][1]:
    assert part.format(dir=folder) in message, result.stderr
  assert 'Compiling train_step' not in result.stderr
  assert 'fresh start' not in result.stdout
  assert not (folder / 'config.json').exists()


def test_a_config_with_a_mistake_of_its_own_is_named(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('def get_config():\n  return undefined_name\n')
  result = main(f'--config={path}', f'--workdir={tmp_path / "run"}')
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  assert 'undefined_name' in result.stderr


def test_describe_json_is_one_object():
  result = main(QUICK, '--mode=describe', '--json', devices=1)
  assert result.returncode == 0, result.stderr
  facts = json.loads(result.stdout)
  assert facts['image_shape'] == [8, 8, 1] and facts['num_classes'] == 10
  # By hand: see the derivation in test_quickstart_parameters_by_hand.
  assert facts['parameters'] == quickstart_parameters()
  assert facts['flops_per_image'] == quickstart_flops()


@pytest.mark.parametrize('config', [[], [QUICK]])
def test_describe_fields_prints_the_page_of_all_fields(config):
  result = main(*config, '--mode=describe', '--fields', devices=1)
  assert result.returncode == 0, result.stderr
  assert result.stdout == (ROOT / 'docs' / 'config.md').read_text()


def quickstart_parameters(d=128, depth=4, classes=10, patch=4):
  """Patch in, time MLP, label table, blocks, final adaLN and linear; weights plus biases."""
  linear = lambda n, m: n * m + m  # noqa: E731
  block = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d)
  condition = linear(256, d) + linear(d, d) + (classes + 1) * d
  return linear(patch, d) + condition + depth * block + linear(d, 2 * d) + linear(d, patch)


def quickstart_flops(d=128, depth=4, tokens=16, patch=4):
  """Two a multiply-add; per token: qkv, out, MLP; the attention matrices; per image: conditions."""
  block = tokens * (3 * d * d + d * d + 8 * d * d) + 2 * tokens * tokens * d + 6 * d * d
  ends = 2 * tokens * patch * d + 256 * d + d * d + 2 * d * d
  return 2 * (depth * block + ends)
