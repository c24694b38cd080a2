"""One writer at a time; what the dead left behind holds nobody up."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import lease


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  for name, seconds in (('RENEWED_EVERY', 0.05), ('STALE_AFTER', 0.5), ('POLLED_EVERY', 0.02)):
    monkeypatch.setattr(lease, name, seconds)


def written(path, **changes):
  """A lease of a process of another host, as it would be found."""
  found = {'host': 'elsewhere', 'process': 7, 'started': '1', 'token': 'a', 'renewed': 3}
  path.write_text(json.dumps({**found, 'since': '2026-11-26T10:00:00+00:00', **changes}))
  return path


def test_a_second_writer_is_told_who_holds_it(tmp_path):
  path = tmp_path / 'train.lease'
  with lease.held(path, 'training in x'):
    with pytest.raises(
      InputError, match=rf'training in x.*process {os.getpid()} of host .* since 20'
    ):
      lease.acquire(path, 'training in x')
    assert json.loads(path.read_text())['process'] == os.getpid()
  assert list(tmp_path.iterdir()) == []
  with lease.held(path, 'training in x'):
    pass


def test_a_dead_process_of_this_host_is_not_waited_for(tmp_path):
  program = (
    'import os, sys; from pathlib import Path; from diffusion_jax.runtime import lease; '
    'lease.acquire(Path(sys.argv[1]), "x"); os._exit(9)'
  )
  path = tmp_path / 'train.lease'
  subprocess.run([sys.executable, '-c', program, str(path)], check=False)
  dead = json.loads(path.read_text())
  began = time.monotonic()
  with lease.held(path, 'x'):
    assert time.monotonic() - began < 0.4
    assert json.loads(path.read_text())['token'] != dead['token']


def test_another_process_of_the_same_number_is_not_the_holder(tmp_path):
  path = tmp_path / 'train.lease'
  with lease.held(path, 'x'):
    mine = json.loads(path.read_text())
  written(path, host=mine['host'], process=mine['process'], started='1')
  began = time.monotonic()
  with lease.held(path, 'x'):
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize('content', [None, '', '[]', '{"host": 3}'])
def test_a_lease_that_is_not_renewed_is_stale(tmp_path, content):
  path = tmp_path / 'train.lease'
  path.write_text(content) if content is not None else written(path)
  began = time.monotonic()
  with lease.held(path, 'x'):
    assert time.monotonic() - began >= 0.5
    assert json.loads(path.read_text())['process'] == os.getpid()


def test_a_lease_that_is_renewed_elsewhere_holds(tmp_path):
  path = written(tmp_path / 'train.lease')
  renewing = threading.Timer(0.2, written, [path], {'renewed': 4})
  renewing.start()
  with pytest.raises(InputError, match='process 7 of host elsewhere since 2026-11-26'):
    lease.acquire(path, 'x')
  renewing.join()
  assert json.loads(path.read_text())['renewed'] == 4


def test_one_that_is_given_up_while_waited_for_is_taken(tmp_path):
  path = written(tmp_path / 'train.lease')
  threading.Timer(0.2, path.unlink).start()
  with lease.held(path, 'x'):
    assert json.loads(path.read_text())['process'] == os.getpid()


def test_a_holder_that_lost_its_lease_ends(tmp_path):
  program = (
    'import sys, time; from pathlib import Path; from diffusion_jax.runtime import lease\n'
    'lease.RENEWED_EVERY = 0.05\n'
    'with lease.held(Path(sys.argv[1]), "x"):\n'
    '  print("held", flush=True); time.sleep(60)'
  )
  path = tmp_path / 'train.lease'
  command = [sys.executable, '-c', program, str(path)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  with subprocess.Popen(command, **pipes) as process:
    assert process.stdout.readline() == 'held\n'
    other = tmp_path / 'other'
    written(other)
    os.replace(other, path)
    _, errors = process.communicate(timeout=30)
  assert process.returncode == lease.LOST and 'process 7 of host elsewhere' in errors
  assert json.loads(path.read_text())['token'] == 'a'
