"""A signal ends a training between two steps, and any other command at once, whatever runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffusion_jax.runtime import interruption
from diffusion_jax.runtime.interruption import Broken, Interruption

ROOT = Path(__file__).parents[2]


def wait_for(condition):
  ends = time.monotonic() + 5
  while not condition() and time.monotonic() < ends:
    time.sleep(0.01)
  assert condition()


@pytest.mark.parametrize('number', Interruption.signals)
def test_no_step_begins_after_a_signal(capfd, number):
  before = signal.getsignal(number)
  with Interruption() as running:
    assert running.may_begin() and running.may_begin()
    signal.raise_signal(number)
    assert not running.may_begin() and running.requested == number.name
    said = []
    wait_for(lambda: said.append(capfd.readouterr().err) or number.name in ''.join(said))
  assert signal.getsignal(number) == before


def test_what_may_be_broken_off_is(monkeypatch):
  with Interruption() as running:
    running.may_begin()
    with pytest.raises(Broken), running.breakable(lambda: None):
      signal.raise_signal(signal.SIGTERM)
      time.sleep(5)
    with pytest.raises(Broken), running.breakable(lambda: None):
      pytest.fail('entered after a signal')
    assert not running.may_begin()


def test_a_signal_of_a_training_that_ended_does_not_end_the_process(monkeypatch):
  ended = []
  monkeypatch.setattr(interruption, 'ENDS_WITHIN', 0.1)
  monkeypatch.setattr(interruption, 'end', ended.append)
  for _ in range(20):
    with Interruption() as running:
      running.may_begin()
      signal.raise_signal(signal.SIGTERM)
  time.sleep(0.5)
  assert not ended


def test_processes_wait_for_each_other_and_go_on_to_the_same_step():
  running = Interruption()
  assert running.freeze() is None
  running.agree(1, signal.SIGTERM)
  assert running.may_begin() and not running.may_begin()
  assert running.requested == 'SIGTERM' and running.freeze() == 1


def test_several_processes_break_off_between_the_same_batches(monkeypatch):
  with Interruption() as running:
    monkeypatch.setattr(interruption._watch, 'peers', object())
    assert running.may_begin()
    measured = []
    with pytest.raises(Broken), running.breakable(None):  # The second that passes.
      for batch in range(5):
        running.point()
        measured.append(batch)
        if batch == 1:
          assert running.freeze() == 4
          running.agree(5, signal.SIGTERM)  # Another one is a batch ahead.
    assert measured == [0, 1, 2] and not running.may_begin()
    monkeypatch.setattr(interruption._watch, 'peers', None)


def test_a_point_is_nothing_to_a_single_process():
  with Interruption() as running:
    assert running.may_begin()
    running.point()
    assert running.freeze() == 1


# The main thread is in C, as in a compilation, where no handler of Python runs.
HELD_UP = """
import contextlib, hashlib, os, signal, sys, threading
from diffusion_jax.runtime import interruption
from diffusion_jax.runtime.interruption import Broken, Interruption
full = sys.argv[-1] == 'full'
interruption.answer()
interruption.ENDS_WITHIN = interruption.BROKEN_WITHIN = 0.5
def send():
  os.kill(os.getpid(), signal.SIGTERM)
def hold():
  threading.Timer(0.2, send).start()
  if sys.argv[-1] == 'twice':
    threading.Timer(0.4, send).start()
  hashlib.pbkdf2_hmac('sha256', b'x', b'x', 8_000_000 if full else 120_000_000)
with Interruption() as running:
  if sys.argv[1] == 'step':
    running.may_begin()
  if sys.argv[1] == 'preview':
    running.may_begin()
    def save():
      print('saved', flush=True)
      if full:
        raise OSError('no room')
    with contextlib.suppress(Broken), running.breakable(save):
      hold()
  if sys.argv[1] in ('compiling', 'step'):
    hold()
if full:
  sys.exit(3)
hold()
"""


@pytest.mark.parametrize(
  ('where', 'mode', 'code', 'saved'),
  [
    ('elsewhere', '--mode=sample', 75, False),
    ('elsewhere', '--mode=describe', 143, False),
    ('compiling', '--mode=train', 75, False),  # Before the first step: nothing is unsaved.
    ('preview', '--mode=train', 75, True),
    ('preview', 'full', 3, True),  # The checkpoint cannot be written: the main thread goes on.
    ('step', 'twice', 75, False),
  ],
)
def test_a_signal_ends_what_holds_python_up(where, mode, code, saved):
  began = time.monotonic()
  found = subprocess.run(
    [sys.executable, '-c', HELD_UP, where, mode],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert found.returncode == code, found.stderr
  assert time.monotonic() - began < 15 and 'SIGTERM' in found.stderr  # The call alone takes longer.
  assert ('saved' in found.stdout) == saved


def test_outside_a_training_a_signal_interrupts(monkeypatch):
  before = [signal.getsignal(number) for number in interruption.SIGNALS], sys.unraisablehook
  monkeypatch.setattr(interruption, 'ENDS_WITHIN', 3600)
  try:
    interruption.answer()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
  finally:
    interruption._watch.drain()  # Else its thread reads the signal when ENDS_WITHIN is 5 s again.
    interruption._watch.close()
    interruption._watch, sys.unraisablehook = None, before[1]
    for number, handler in zip(interruption.SIGNALS, before[0]):
      signal.signal(number, handler)
