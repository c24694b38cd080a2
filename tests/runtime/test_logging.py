"""metrics.jsonl after an interruption, and Weights & Biases when it is not there."""

import errno
import json
import sys

import numpy as np
import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import logging


def write(path, steps):
  writer = logging.JsonLines(path)
  for step in steps:
    writer.write_scalars(step, {'loss': np.float32(step / 2)})
  writer.close()


def steps_of(path):
  return [json.loads(line)['step'] for line in path.read_text().splitlines()]


def test_lines_that_a_resumed_run_writes_again_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write(path, [10, 20, 30])
  with open(path, 'ab') as file:
    file.write(b'[]\n\xff\n{"step": 40, "lo')  # Killed in the middle of a line.
  logging.keep_until(tmp_path, 20)
  write(path, [30])
  assert steps_of(path) == [10, 20, 30]
  assert json.loads(path.read_text().splitlines()[0]) == {'step': 10, 'loss': 5.0}


@pytest.mark.parametrize(('start', 'kept'), [(20, [10, 20]), (0, [])])
def test_skipped_steps_that_a_run_takes_again_are_dropped(tmp_path, start, kept):
  for step in (10, 20, 30):
    logging.note_skipped(tmp_path, step, {'loss': float('inf')}, [step, 1])
  logging.keep_until(tmp_path, start)
  assert steps_of(tmp_path / 'skipped.jsonl') == kept
  logging.note_skipped(tmp_path, 30, {'loss': 2.0}, [7])
  line = (tmp_path / 'skipped.jsonl').read_text().splitlines()[-1]
  assert json.loads(line) == {'step': 30, 'loss': 2.0, 'examples': [7]}


def test_what_is_not_finite_is_null(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  writer = logging.JsonLines(path)
  writer.write_scalars(1, {'loss': float('nan'), 'skipped': 3})
  writer.close()
  assert path.read_text() == '{"step": 1, "loss": null, "skipped": 3.0}\n'


def test_a_fresh_start_keeps_the_longest_of_the_runs_before(tmp_path):
  path, logs = tmp_path / 'metrics.jsonl', tmp_path / 'logs'
  for count in (5, 1, 3, 4, 0, 2):  # All within a second: no run takes the place of another.
    logging.keep_until(tmp_path, 0)
    assert not path.exists() and not logs.exists()
    write(path, range(1, count + 1))
    logs.mkdir()
    (logs / 'events').write_text(str(count))
  logging.keep_until(tmp_path, 0)
  kept = sorted(tmp_path.glob('metrics-until-*.jsonl'))
  assert sorted(len(steps_of(old)) for old in kept) == [3, 4, 5]
  for old in kept:
    events = old.with_name(f'{old.stem.replace("metrics", "logs")}') / 'events'
    assert int(events.read_text()) == len(steps_of(old))
  assert len(list(tmp_path.iterdir())) == 6


def test_tensorboard_shows_no_step_of_a_killed_run_twice(tmp_path):
  for start, end in ((0, 50), (20, 40), (30, 60)):  # Twice killed after its last checkpoint.
    logging.keep_until(tmp_path, start)
    writer = logging.create_writer(tmp_path, wandb_project='', config={})
    for step in range(start + 10, end, 10):
      writer.write_scalars(step, {'loss': step + start / 100})
      writer.write_images(step, {'preview': np.zeros((1, 2, 2, 3), np.uint8)})
    writer.close()
    torn = max((tmp_path / 'logs').iterdir(), key=lambda path: path.stat().st_mtime_ns)
    torn.write_bytes(torn.read_bytes() + b'\x10\x00\x00')
  (tmp_path / 'logs' / '.events.out.tfevents.1.tmp').touch()
  logging.keep_until(tmp_path, 50)

  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util.tensor_util import make_ndarray

  found = EventAccumulator(str(tmp_path / 'logs')).Reload()
  losses = {event.step: float(make_ndarray(event.tensor_proto)) for event in found.Tensors('loss')}
  assert losses == pytest.approx({10: 10, 20: 20, 30: 30.2, 40: 40.3, 50: 50.3})
  for name in ('loss', 'preview'):  # Files of one second are read by name, where 10 is before 9.
    assert sorted(event.step for event in found.Tensors(name)) == [10, 20, 30, 40, 50]
  assert not list((tmp_path / 'logs').glob('.*'))


def test_without_tensorboard_one_line_says_so_and_the_rest_is_written(
  tmp_path, monkeypatch, capsys
):
  for missing in ('clu', 'tensorflow', 'tensorboard'):
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, missing, None)
      folder = tmp_path / missing
      (folder / 'logs').mkdir(parents=True)
      events = folder / 'logs' / 'events.out.tfevents.1'
      events.write_bytes(b'of another installation')
      write(folder / 'metrics.jsonl', [10, 20])
      logging.keep_until(folder, 10)
      writer = logging.create_writer(folder, wandb_project='', config={})
      writer.write_scalars(20, {'loss': 10.0})
      writer.write_images(20, {'preview': np.zeros((1, 2, 2, 3), np.uint8)})
      writer.flush()
      writer.close()
    assert steps_of(folder / 'metrics.jsonl') == [10, 20]
    assert [*(folder / 'logs').iterdir()] == [events] and events.stat().st_size == 23
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_only_the_first_host_writes(tmp_path, monkeypatch):
  monkeypatch.setattr('diffusion_jax.runtime.hosts.is_first', lambda: False)
  writer = logging.create_writer(tmp_path, wandb_project='', config={})
  writer.write_scalars(1, {'loss': 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('create', 'error'),
  [
    (logging.JsonLines, OSError(errno.ENOSPC, 'No space left on device')),
    (logging.TensorBoard, RuntimeError('Error: logs; No space left on device, asynchronously')),
  ],
)
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, create, error):
  class Full:
    def write(self, *unused):
      raise RuntimeError('elsewhere') from error

    write_scalars = flush = close = write

  path = tmp_path / 'of-the-run'
  writer = create(path)
  writer.close()
  writer._file = writer._writer = Full()
  for call in (lambda: writer.write_scalars(1, {'loss': 1.0}), writer.flush, writer.close):
    with pytest.raises(OSError, match='No space') as caught:
      call()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)


def test_wandb_is_asked_for_but_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install wandb'):
    logging.require_wandb()
