"""Compiled programs are kept in the user's cache folder, or where the user says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax.runtime import compile_cache

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing_set(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv(compile_cache.VARIABLE, '')
  monkeypatch.delenv(compile_cache.VARIABLE)


def test_the_folder_is_the_users_and_of_this_cpu(nothing_set, tmp_path, monkeypatch):
  compile_cache.use()
  folder = Path(os.environ[compile_cache.VARIABLE])
  assert folder.is_dir() and folder.parent == tmp_path / 'diffusion_jax'
  monkeypatch.setattr(compile_cache.platform, 'machine', lambda: 'another')
  assert not folder.name.endswith(compile_cache.machine())


def test_a_folder_that_is_given_goes_first(nothing_set, tmp_path, monkeypatch):
  monkeypatch.setenv(compile_cache.VARIABLE, 'elsewhere')
  compile_cache.use()
  assert os.environ[compile_cache.VARIABLE] == 'elsewhere' and not list(tmp_path.iterdir())


def test_without_a_folder_programs_are_compiled_anew(nothing_set, tmp_path):
  (tmp_path / 'diffusion_jax').write_text('a file')
  compile_cache.use()
  assert compile_cache.VARIABLE not in os.environ


def test_what_was_used_longest_ago_goes(tmp_path):
  for number in range(5):
    path = tmp_path / f'{number}-cache'
    path.write_bytes(bytes(100))
    os.utime(path, (1000 * ((number + 2) % 5), 0))  # 3 was read longest ago, then 4, 0, 1, 2.
  compile_cache.shrink(tmp_path, 250)
  assert sorted(path.name[0] for path in tmp_path.iterdir()) == ['1', '2']
  compile_cache.shrink(tmp_path, 250)
  assert len(list(tmp_path.iterdir())) == 2


PROGRAM = """
from diffusion_jax.runtime import compile_cache
compile_cache.use()
import jax
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""


def test_a_program_that_was_cut_short_is_compiled_anew(nothing_set, tmp_path):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}

  def run():
    command = [sys.executable, '-W', 'ignore', '-c', PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)

  assert run() == 7.0
  programs = list(tmp_path.glob('diffusion_jax/*/*-cache'))
  assert programs
  for path in programs:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert run() == 7.0
