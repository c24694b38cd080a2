"""A command starts again with huge pages, once, and only where they are to be had."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_jax import cli
from diffusion_jax.runtime import huge_pages

ROOT = Path(__file__).parents[2]
CHOICES = {'asked': 'always [madvise] never', 'always': '[always] madvise never', 'gone': None}

COMMAND = """
import os, sys
from pathlib import Path
from diffusion_jax.runtime import huge_pages
huge_pages.KERNEL = Path(os.environ['KERNEL'])
os.confstr_names['CS_GNU_LIBC_VERSION'] = 2  # On a system without glibc too.
print('start', flush=True)
huge_pages.use()
print(os.environ.get('GLIBC_TUNABLES', ''), sys.argv[1:], flush=True)
"""
PAGES = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
ctypes.memset(ctypes.c_void_p(libc.malloc(2**28)), 1, 2**28)
print(faults() - before)
"""


def lines_of(tmp_path, script=COMMAND, kernel='asked', given=None):
  """What a script prints that asks for huge pages, where the kernel says so."""
  (tmp_path / 'command.py').write_text(script)
  if CHOICES[kernel]:
    (tmp_path / 'kernel').write_text(CHOICES[kernel])
  variables = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
  variables |= {'PYTHONPATH': str(ROOT), 'KERNEL': str(tmp_path / 'kernel')}
  if given is not None:
    variables[huge_pages.VARIABLE] = given
  command = [sys.executable, '-u', 'command.py', 'a word', '--flag=1']
  done = subprocess.run(
    command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
  )
  return done.stdout.splitlines()


@pytest.mark.parametrize('given', [None, 'glibc.malloc.check=0'])
def test_a_command_starts_once_more_with_the_same_words(tmp_path, given):
  first, second, last = lines_of(tmp_path, given=given)
  assert first == second == 'start'
  setting = ':'.join(filter(None, [given, 'glibc.malloc.hugetlb=1']))
  assert last == f"{setting} ['a word', '--flag=1']"


@pytest.mark.parametrize(
  'kernel, given', [('asked', 'glibc.malloc.hugetlb=0'), ('always', ''), ('gone', '')]
)
def test_it_does_not_where_that_changes_nothing_or_is_not_wanted(tmp_path, kernel, given):
  first, last = lines_of(tmp_path, kernel=kernel, given=given)
  assert first == 'start' and last == f"{given} ['a word', '--flag=1']"


class Started(Exception):
  """In place of a process that was replaced."""


@pytest.fixture
def started(monkeypatch, tmp_path):
  """The words with which the command starts again, under a kernel that gives huge pages on request."""
  words = []

  def execv(*given):
    words.append(given)
    raise Started

  (tmp_path / 'kernel').write_text(CHOICES['asked'])
  monkeypatch.setattr(huge_pages, 'KERNEL', tmp_path / 'kernel')
  monkeypatch.setitem(os.confstr_names, 'CS_GNU_LIBC_VERSION', 2)
  monkeypatch.setenv(huge_pages.VARIABLE, '')
  monkeypatch.setattr(os, 'execv', execv)
  return words


def test_the_command_asks_for_them_before_it_reads_its_flags(started, monkeypatch, capsys):
  words = ['main.py', '--help']
  monkeypatch.setattr(sys, 'argv', words)
  monkeypatch.setattr(sys, 'orig_argv', ['python', *words])
  assert cli.run() == 0 and not started and capsys.readouterr().out
  words[1] = '--no_such_flag'
  monkeypatch.setattr(sys, 'orig_argv', ['python', *words])
  with pytest.raises(Started):
    cli.run()


def test_only_the_command_itself_is_started_again(started, monkeypatch):
  """Neither pytest, nor a notebook that calls it, nor a debugger, which would lose its connection."""
  monkeypatch.setattr(sys, 'argv', ['main.py', '--mode=train'])
  huge_pages.use()
  assert not started
  monkeypatch.setattr(sys, 'orig_argv', ['python', '-m', 'debugpy', 'main.py', '--mode=train'])
  huge_pages.use()
  assert not started
  monkeypatch.setattr(sys, 'orig_argv', ['python', 'main.py', '--mode=train'])
  with pytest.raises(Started):
    huge_pages.use()
  assert started == [(sys.executable, [sys.executable, 'main.py', '--mode=train'])]


@pytest.mark.skipif(
  not huge_pages.on_request(), reason='this kernel gives no huge pages on request'
)
def test_the_setting_makes_the_pages_huge(tmp_path):
  (plain,) = lines_of(tmp_path, PAGES, given='glibc.malloc.hugetlb=0')
  (huge,) = lines_of(tmp_path, PAGES, given='glibc.malloc.hugetlb=1')
  assert int(plain) > 2**28 // 4096 and int(huge) < int(plain) / 2
