"""A test in a process of its own: importing diffusers after TensorFlow ends the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

VARIABLE = 'TEST_IN_ITS_OWN_PROCESS'


def alone(request: pytest.FixtureRequest) -> bool:
  """Whether this process is the test's own. If not, the test has run in one, and passed."""
  name = request.node.nodeid
  if os.environ.get(VARIABLE) == name:
    return True
  command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', '', name]
  child = subprocess.run(
    command,
    cwd=Path(__file__).parents[2],
    env={**os.environ, VARIABLE: name},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert child.returncode == 0 and '1 passed' in child.stdout, child.stdout + child.stderr
  return False
