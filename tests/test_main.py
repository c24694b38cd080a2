"""Signals that main.py answers with one line and an exit code, at whatever moment they arrive."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}
# The module that is replaced sends the signal while main.py, or a stage, imports it.
RUN = """
import runpy, sys
sys.path[:0] = [sys.argv.pop(1), '.']
sys.argv = ['main.py', '--config=configs/quickstart.py', '--workdir=none', '--mode=describe']
runpy.run_path('main.py', run_name='__main__')
"""


@pytest.mark.parametrize('number', CODES)
@pytest.mark.parametrize('module', ['absl', 'diffusion_jax'])
def test_a_signal_during_imports_is_one_line(tmp_path, number, module):
  (tmp_path / f'{module}.py').write_text(
    f'import os, time\ntry:\n  os.kill(os.getpid(), {int(number)})\n  time.sleep(5)\n'
    'except BaseException:\n  pass\nraise ImportError\n'
  )
  found = subprocess.run(
    [sys.executable, '-c', RUN, str(tmp_path)],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': ''},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert found.returncode == CODES[number], found.stderr
  assert len(found.stderr.splitlines()) == 1 and number.name in found.stderr
