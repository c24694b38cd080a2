"""A long phase shows that it lives; a short one says nothing."""

import threading
import time

from diffusion_jax.runtime.patience import alive


def test_a_long_phase_speaks_and_a_short_one_does_not(capsys):
  with alive('compiling', first_after=60.0):
    pass
  assert capsys.readouterr().err == ''
  with alive('restoring', first_after=0.02):
    time.sleep(0.2)
  lines = capsys.readouterr().err.splitlines()
  assert 1 <= len(lines) <= 9 and all(line.startswith('restoring: ') for line in lines)


def test_it_ends_with_the_phase(capsys):
  before = threading.active_count()
  try:
    with alive('loading', first_after=0.02):
      raise ValueError
  except ValueError:
    pass
  time.sleep(0.1)
  assert threading.active_count() == before and capsys.readouterr().err == ''
