"""Item 3: a training goes on with another number of processes and devices."""

import json

import numpy as np
import pytest

from tests.support.clusters import finish, start

TINY = {
  'model.dit.depth': 2,
  'model.dit.hidden_size': 32,
  'optimizer.warmup_steps': 2,
  'optimizer.decay': 'constant',
  'train.batch_size': 32,
  'train.log_every_steps': 1,
  'train.holdout_every_steps': 40,
  'train.preview_every_steps': 40,
  'checkpoint.every_steps': 40,
}
TIMES = ('images_per_s', 'step_time', 'data_wait', 'mfu')


def train(folder, data, steps, **processes):
  flags = [f'--config.{name}={value}' for name, value in {**TINY, 'train.num_steps': steps}.items()]
  config = ['--config=configs/quickstart.py', f'--config.data.dir={data}', f'--workdir={folder}']
  preset = (
    '--config.mesh.preset=fsdp' if processes['devices'] > 1 else '--config.mesh.preset=replicated'
  )
  codes, outputs, errors = finish(start(*config, *flags, preset, **processes))
  assert set(codes) == {0}, errors
  return outputs[0]


@pytest.mark.slow
@pytest.mark.unoptimised
def test_from_two_processes_of_two_devices_to_one_of_eight(tmp_path):
  """The restored state is verified by its checksums, which are those of the bits in any sharding."""
  data = tmp_path / 'data'
  train(tmp_path / 'whole', data, 12, num_processes=1, devices=1)
  train(tmp_path / 'parts', data, 7, num_processes=2, devices=2)
  assert 'resumed at step 7' in train(tmp_path / 'parts', data, 12, num_processes=1, devices=8)

  def lines(name):
    text = (tmp_path / name / 'metrics.jsonl').read_text()
    return {x['step']: x for x in map(json.loads, text.splitlines()) if 'loss' in x}

  whole, parts = lines('whole'), lines('parts')
  assert list(parts) == list(whole) == list(range(1, 13))
  for step, expected in whole.items():
    for name in expected.keys() - set(TIMES):
      np.testing.assert_allclose(
        parts[step][name], expected[name], rtol=1e-5, err_msg=f'{name} {step}'
      )
