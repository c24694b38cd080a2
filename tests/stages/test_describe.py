"""--mode=describe: what does not fit a device, and what is no run."""

import json

import jax
import pytest

from configs import report
from diffusion_jax.command import run_mode
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import cost
from tests.conftest import tiny_mapping


def described(tmp_path, capsys, **changes):
  run_mode('describe', tiny_mapping(tmp_path, **changes), {}, None, as_json=True)
  return json.loads(capsys.readouterr().out)


def test_more_memory_than_a_device_has_is_a_warning_that_names_what_helps(
  tmp_path, capsys, monkeypatch
):
  f = described(tmp_path, capsys)
  assert f['device_bytes'] > 1e9 and f['warnings'] == []
  fixed = f['state_bytes_per_device'] + f['gradient_bytes_per_device']
  assert f['activation_bytes_per_device'] > 0
  monkeypatch.setattr(cost, 'device_bytes', lambda: fixed + 1)
  (warning,) = described(tmp_path, capsys)['warnings']
  helps = (
    '--config.train.batch_size',
    '--config.model.dit.remat=blocks',
    '--config.dtype=bfloat16',
  )
  assert all(field in warning for field in helps)
  (warning,) = described(tmp_path, capsys, **{'model.dit.remat': 'blocks', 'dtype': 'bfloat16'})[
    'warnings'
  ]
  assert helps[0] in warning and not any(field in warning for field in helps[1:])
  monkeypatch.setattr(cost, 'device_bytes', lambda: fixed - 1)
  (warning,) = described(tmp_path, capsys)['warnings']
  assert 'config.mesh.preset' in warning and 'batch_size' not in warning
  run_mode('describe', tiny_mapping(tmp_path), {}, None, as_json=False)
  assert f'warning   {warning}' in capsys.readouterr().out
  monkeypatch.setattr(cost, 'device_bytes', lambda: 0)  # Not known.
  assert described(tmp_path, capsys)['warnings'] == []


def test_training_refuses_a_state_that_does_not_fit_before_anything_else(tmp_path, monkeypatch):
  monkeypatch.setattr(cost, 'device_bytes', lambda: 10_000)
  with pytest.raises(InputError, match=r'the training state takes .* 10 kB.*config\.mesh\.preset'):
    run_mode('train', tiny_mapping(tmp_path), {}, tmp_path / 'run', as_json=False)
  assert not (tmp_path / 'data').exists() and not list((tmp_path / 'run').iterdir())


@pytest.mark.parametrize('mode', ['describe', 'train', 'sample'])
def test_the_config_of_a_report_is_refused(tmp_path, mode):
  with pytest.raises(InputError, match='describes a report, not a run; use --mode=report'):
    run_mode(mode, report.get_config().to_dict(), {}, tmp_path / 'run', as_json=False)


def test_shardings_of_every_array_are_listed(tmp_path, capsys):
  changes = {'mesh.preset': 'fsdp', 'mesh.rules': (('qkv/kernel', ('', '', '', 'tensor')),)}
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode('describe', mapping, {}, None, shardings=True)
  title, _, _, _, *rows = capsys.readouterr().out.splitlines()
  state = jax.tree.leaves(create(mapping).abstract_state)
  assert len(rows) == len(state) and f'{cost.num_bytes(state):,} bytes' in title
  (row,) = [row.split() for row in rows if row.startswith('params/model/blocks/mlp_in/kernel')]
  assert row[1:] == ['2x32x128', 'float32', '-,', '-,', 'fsdp', f'{4 * 2 * 32 * 128:,}']
  assert 'tensor' in next(
    row for row in rows if row.startswith('averages/ema/model/blocks/qkv/kernel')
  )
  with pytest.raises(InputError, match='--shardings'):
    run_mode('train', mapping, {}, tmp_path / 'run', shardings=True)
