"""Signals that main.py answers with one line and an exit code, at whatever moment they arrive."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The module that is replaced sends the signal while main.py, or a stage, imports it.
RUN = """
import runpy, sys
MODE = [sys.argv.pop()]
sys.path[:0] = [sys.argv.pop(1), '.']
sys.argv = ['main.py', '--config=configs/quickstart.py', '--workdir=none', *MODE]
runpy.run_path('main.py', run_name='__main__')
"""


@pytest.mark.parametrize(
  ('module', 'mode', 'number', 'code'),
  [
    ('absl', '--mode=sample', signal.SIGINT, 75),
    ('absl', '--json', signal.SIGTERM, 75),  # --mode=train, which goes on.
    ('optax', '--mode=bench', signal.SIGINT, 130),
    ('optax', '--mode=describe', signal.SIGTERM, 143),
  ],
)
def test_a_signal_during_imports_is_one_line(tmp_path, module, mode, number, code):
  (tmp_path / f'{module}.py').write_text(
    f'import os, time\ntry:\n  os.kill(os.getpid(), {int(number)})\n  time.sleep(5)\n'
    'except BaseException:\n  pass\nraise ImportError\n'
  )
  found = subprocess.run(
    [sys.executable, '-c', RUN, str(tmp_path), mode],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': ''},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert found.returncode == code, found.stderr
  assert len(found.stderr.splitlines()) == 1 and number.name in found.stderr


# The signal arrives in a callback of the garbage collector, where an exception is printed and ignored.
LOST = """
import os, signal, sys, time, weakref
from diffusion_jax.runtime import interruption
interruption.answer()
class Thing: pass
thing = Thing()
reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
print('flushed')
try:
  del thing
  time.sleep(20)
except KeyboardInterrupt as interrupt:
  interruption.end(*interrupt.args)
"""


def test_a_signal_is_not_lost_in_a_callback():
  command = [sys.executable, '-c', LOST, '--mode=evaluate']
  found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=15, check=False)
  assert found.returncode == 75 and found.stdout == 'flushed\n'
  assert len(found.stderr.splitlines()) == 1 and 'SIGINT' in found.stderr
