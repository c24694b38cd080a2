"""Checkpoints come back exactly or not at all."""

import os
import resource
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import checkpoint as runtime_checkpoint
from diffusion_jax.runtime.checkpoint import Checkpoints, checksums
from diffusion_jax.runtime.mesh import make_mesh, replicated


def state(seed):
  return {
    'w': jax.random.normal(jax.random.key(seed), (64, 32)),
    'half': jnp.arange(6, dtype=jnp.bfloat16),
    'step': jnp.int32(seed),
  }


def abstract():
  sharding = replicated(make_mesh(-1, 1, 1))
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0))


def saved(folder, steps, metrics=lambda step: {}, **options):
  checkpoints = Checkpoints(folder, **{'keep_newest': 5, **options})
  for step in steps:
    checkpoints.save(step, state(step), metrics(step))
  checkpoints.wait()
  return checkpoints


def assert_same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def corrupt(folder, step):
  """Flips one byte in the largest file of a step, which holds the array data."""
  files = [p for p in (folder / str(step)).rglob('*') if p.is_file()]
  path = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def test_the_newest_state_comes_back(tmp_path):
  saved(tmp_path, [1, 2]).close()
  found = Checkpoints(tmp_path).restore(abstract())
  assert found.step == 2 and not found.damaged
  assert_same(found.state, state(2))


def test_nothing_stored_is_none(tmp_path):
  assert Checkpoints(tmp_path).restore(abstract()) is None


def test_a_flipped_bit_is_noticed_and_the_step_before_is_used(tmp_path):
  saved(tmp_path, [1, 2]).close()
  corrupt(tmp_path, 2)
  found = Checkpoints(tmp_path).restore(abstract())
  assert found.step == 1 and list(found.damaged) == [2]
  assert_same(found.state, state(1))
  corrupt(tmp_path, 1)
  with pytest.raises(DamagedError, match='no usable checkpoint'):
    Checkpoints(tmp_path).restore(abstract())


def test_a_step_removed_while_it_is_read_is_not_damage(tmp_path, monkeypatch):
  """As by a training with keep_newest=1 that runs beside the reader."""
  saved(tmp_path, [1]).close()
  reader, read = Checkpoints(tmp_path, read_only=True), Checkpoints._read

  def removed_first(self, step, *rest):
    monkeypatch.setattr(Checkpoints, '_read', read)
    saved(tmp_path, [2], keep_newest=1).close()
    return read(self, step, *rest)

  monkeypatch.setattr(Checkpoints, '_read', removed_first)
  found = reader.restore(abstract())
  assert found.step == 2 and not found.damaged
  assert_same(found.state, state(2))
  with pytest.raises(InputError, match='step 1 could not be read'):  # Chosen before it was removed.
    reader.restore(abstract(), 1)

  def removed_again(self, step, *rest):
    newest = self.steps()[-1] + 1
    saved(tmp_path, [newest], keep_newest=1).close()
    return read(self, step, *rest)

  monkeypatch.setattr(Checkpoints, '_read', removed_again)
  with pytest.raises(InputError, match=r'step 2 could not be read.*keep_newest') as stop:
    reader.restore(abstract(), 2)
  assert stop.value.exit_code == 2
  monkeypatch.setattr(runtime_checkpoint, 'LOOKS', 2)
  with pytest.raises(InputError, match='has moved on'):
    reader.restore(abstract())


def test_a_step_removed_while_it_is_listed_is_not_an_error(tmp_path, monkeypatch):
  saved(tmp_path, [1]).close()
  load, times = ocp.CheckpointManager._load_checkpoint_infos, iter([True, False, True, False])

  def removed_at_times(self, *rest, **options):
    if next(times):
      raise FileNotFoundError(tmp_path / '68')
    return load(self, *rest, **options)

  monkeypatch.setattr(ocp.CheckpointManager, '_load_checkpoint_infos', removed_at_times)
  assert Checkpoints(tmp_path, read_only=True).steps() == [1]


def test_a_failed_write_is_a_message(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, [1])

  def full(*args, **kwargs):
    raise ValueError('RESOURCE_EXHAUSTED: No space left on device')

  monkeypatch.setattr(ocp.CheckpointManager, 'wait_until_finished', full)
  with pytest.raises(InputError, match='could not be written'):
    checkpoints.wait()


def test_room_is_checked_before_a_save(tmp_path, monkeypatch):
  checkpoints = saved(tmp_path, [1])
  needed = 64 * 32 * 4 + 6 * 2 + 4
  for free, fits in ((needed - 1, False), (needed, True)):
    disk = SimpleNamespace(f_bavail=free, f_frsize=1)
    monkeypatch.setattr(os, 'statvfs', {tmp_path: disk}.__getitem__)
    if fits:
      checkpoints.save(2, state(2), {})
    else:
      with pytest.raises(InputError, match=rf'{tmp_path}: .* 8,208 bytes, and 8,207 are free'):
        checkpoints.save(2, state(2), {})
      assert checkpoints.steps() == [1]
  checkpoints.close()
  assert Checkpoints(tmp_path).steps() == [1, 2]


def test_a_save_that_fails_in_the_background_is_noticed_without_another(tmp_path):
  """As on a full disk: no file may grow beyond 4 kB, and an array has 8."""
  checkpoints = saved(tmp_path, [1])
  checkpoints.check()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
  try:
    checkpoints.save(2, state(2), {})
    with pytest.raises(InputError, match='File too large'):
      for _ in range(500):  # 10 s.
        checkpoints.check()
        time.sleep(0.02)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  checkpoints.close()
  assert Checkpoints(tmp_path).steps() == [1]


@pytest.mark.parametrize('content', ['', '{"lo', '[]', '3', '{}', '{"loss": []}'])
@pytest.mark.parametrize('read_only', [False, True])
def test_unreadable_metrics_cost_no_checkpoint(tmp_path, content, read_only):
  options = {'keep_newest': 5, 'keep_best': 1, 'best_metric': 'loss'}
  saved(tmp_path / 'c', [1, 2], metrics=lambda step: {'loss': 1.0}, **options).close()
  for step in (1, 2):
    (tmp_path / 'c' / str(step) / 'metrics' / 'metrics').write_text(content)
  checkpoints = Checkpoints(tmp_path / 'c', read_only=read_only, **options)
  found = checkpoints.restore(abstract())
  assert found.step == 2 and not found.damaged and checkpoints.best_step() is None
  assert_same(found.state, state(2))
  assert checkpoints.steps() == [1, 2] and not (tmp_path / 'c-damaged').exists()


def empty_all(folder):
  for path in (p for p in folder.rglob('*') if p.is_file()):
    path.write_bytes(b'')


def empty_arrays(folder):
  files = [p for p in (folder / 'state' / 'ocdbt.process_0' / 'd').iterdir() if p.is_file()]
  path = max(files, key=lambda p: p.stat().st_size)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_arrays(folder):
  for path in (folder / 'state' / 'ocdbt.process_0' / 'd').iterdir():
    path.unlink()


def replace_checksums(folder, content='[]'):
  (folder / 'checksums' / 'metadata').write_text(content)


def replace_checksums_by_a_number(folder):
  replace_checksums(folder, '3')


def replace_checksums_by_nothing(folder):
  replace_checksums(folder, '{}')


CHECKSUMS = [replace_checksums, replace_checksums_by_a_number, replace_checksums_by_nothing]


@pytest.mark.parametrize('damage', [empty_all, empty_arrays, remove_arrays, *CHECKSUMS])
def test_damage_costs_the_step_and_nothing_is_moved(tmp_path, damage, capfd):
  saved(tmp_path / 'c', [1, 2], metrics=lambda step: {'loss': 1.0}).close()
  damage(tmp_path / 'c' / '2')
  found = Checkpoints(tmp_path / 'c').restore(abstract())
  assert found.step == 1 and list(found.damaged) == [2] and '\n' not in found.damaged[2]
  assert_same(found.state, state(1))
  damage(tmp_path / 'c' / '1')
  with pytest.raises(DamagedError, match='no usable checkpoint'):
    Checkpoints(tmp_path / 'c').restore(abstract())
  assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['1', '2']
  assert not (tmp_path / 'c-damaged').exists()
  assert 'Traceback' not in capfd.readouterr().err


def test_a_run_that_had_checkpoints_does_not_begin_again(tmp_path):
  checkpoints = saved(tmp_path / 'c', [])
  (tmp_path / 'c' / '3.orbax-checkpoint-tmp-1').mkdir()  # Killed in the middle of its first save.
  checkpoints.require_none()
  (tmp_path / 'c-damaged' / '2-again').mkdir(parents=True)
  with pytest.raises(DamagedError, match='2-again'):
    checkpoints.require_none()


@pytest.mark.parametrize('mode', ['min', 'max'])
@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf'), None])
def test_what_is_not_finite_is_never_the_best(tmp_path, mode, bad):
  values = {1: 2.0, 2: bad, 3: bad}
  options = {'keep_newest': 1, 'keep_best': 1, 'best_metric': 'loss', 'best_mode': mode}
  checkpoints = saved(tmp_path, values, metrics=lambda step: {'loss': values[step]}, **options)
  assert checkpoints.steps() == [1, 3] and checkpoints.best_step() == 1


def test_newest_and_best_are_kept(tmp_path):
  losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
  checkpoints = saved(
    tmp_path,
    losses,
    metrics=lambda step: {'loss': losses[step]},
    keep_newest=2,
    keep_best=1,
    best_metric='loss',
  )
  assert checkpoints.steps() == [2, 4, 5] and checkpoints.best_step() == 2
  highest = Checkpoints(tmp_path, best_metric='loss', best_mode='max', read_only=True)
  assert highest.best_step() == 4


def test_the_highest_is_kept_where_higher_is_better(tmp_path):
  values = {1: 3.0, 2: 9.0, 3: 2.0, 4: 5.0}
  checkpoints = saved(
    tmp_path,
    values,
    metrics=lambda step: {'psnr': values[step]},
    keep_newest=1,
    keep_best=1,
    best_metric='psnr',
    best_mode='max',
  )
  assert checkpoints.steps() == [2, 4] and checkpoints.best_step() == 2


def test_checksums_see_any_single_change():
  base = state(0)
  before = checksums(base)
  assert before == checksums(state(0))
  for index in ((0, 0), (63, 31), (10, 20)):
    assert checksums({**base, 'w': base['w'].at[index].add(1e-3)})['w'] != before['w']
  swapped = base['w'].at[0].set(base['w'][1]).at[1].set(base['w'][0])
  assert checksums({**base, 'w': swapped})['w'] != before['w']
