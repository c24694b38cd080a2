"""main.py on two processes of two devices does what it does on one of one."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.samples import load_samples

ROOT = Path(__file__).parents[1]
TINY = {
  'model.dit.depth': 2,
  'model.dit.hidden_size': 32,
  'optimizer.warmup_steps': 2,
  'train.num_steps': 6,
  'train.batch_size': 32,
  'train.log_every_steps': 2,
  'train.holdout_every_steps': 3,
  'train.preview_every_steps': 3,
  'train.eval_every_steps': 3,
  'train.eval_num_samples': 20,
  'checkpoint.every_steps': 3,
  'sample.num_samples': 30,
  'sample.num_steps': 3,
  'eval.features.dataset_classifier.num_steps': 5,
}
FLAGS = [f'--config.{name}={value}' for name, value in TINY.items()]


def main(*arguments, num_processes=1, workdirs=None):
  """Runs main.py in as many processes, of two devices if several. Returns: exit codes, outputs, errors."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  devices = '2' if num_processes > 1 else '1'
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': devices}
  environment.pop('XLA_FLAGS', None)
  running = []
  for number in range(num_processes):
    joining = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={num_processes}']
    joining = [*joining, f'--process_id={number}'] if num_processes > 1 else []
    command = [sys.executable, 'main.py', *arguments, *joining]
    command += [f'--workdir={workdirs[number]}'] if workdirs else []
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    running.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
  try:
    outputs = [process.communicate(timeout=300) for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], *zip(*outputs)


def lines(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.unoptimised
def test_two_processes_train_sample_and_evaluate_as_one(tmp_path):
  config = ['--config=configs/quickstart.py', f'--config.data.dir={tmp_path}/data']
  one, two = tmp_path / 'one', tmp_path / 'two'
  codes, outputs, errors = main(*config, f'--workdir={two}', *FLAGS, num_processes=2)
  assert codes == [0, 0], '\n'.join(errors)
  codes, _, complaints = main(*config, f'--workdir={one}', *FLAGS)
  assert codes == [0], complaints

  expected = lines(one)
  for found, wanted in zip(lines(two), expected, strict=True):
    assert found.keys() == wanted.keys()
    for name in found.keys() - {'images_per_s', 'step_time', 'data_wait', 'mfu'}:
      np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7, err_msg=name)
  assert {'holdout_loss', 'frechet_distance@20', 'loss'} <= {
    name for line in expected for name in line
  }
  assert len(list((two / 'previews').glob('*.png'))) == 2
  logs = [(two / 'logs' / f'host-{number}.log').read_text() for number in (0, 1)]
  assert 'done: 6 steps' in outputs[0] and all('done: 6 steps' in log for log in logs)
  assert 'done' not in outputs[1] and 'step/s' not in errors[1]

  for folder, processes in ((two, 2), (one, 1)):
    codes, _, errors = main(f'--workdir={folder}', '--mode=evaluate', num_processes=processes)
    assert codes == [0] * processes, '\n'.join(errors)
  results = [json.loads(next((f / 'eval').glob('*.json')).read_text()) for f in (one, two)]
  for name, value in results[0]['metrics'].items():
    np.testing.assert_allclose(results[1]['metrics'][name], value, rtol=1e-4, err_msg=name)
  sets = [load_samples(folder / 'samples' / 'ddim3-cfg1', 30) for folder in (one, two)]
  np.testing.assert_array_equal(sets[0][1], sets[1][1])
  assert np.abs(sets[0][0].astype(int) - sets[1][0]).max() <= 1  # A level, by rounding.


def test_a_work_directory_that_is_not_shared_is_refused_once(tmp_path):
  folders = [tmp_path / 'a', tmp_path / 'b']
  config = ['--config=configs/quickstart.py', f'--config.data.dir={tmp_path}/data']
  codes, _, errors = main(*config, num_processes=2, workdirs=folders)
  assert codes == [2, 2]
  assert f'--workdir={folders[0]}' in errors[0] and 'process 1' in errors[0]
  assert '--workdir' not in errors[1]
  assert not any(path.name.startswith('.shared') for folder in folders for path in folder.iterdir())
