"""What made a result: versions of the packages that compute, and the commit of this code."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy')
ROOT = Path(__file__).parents[2]


def now() -> str:
  """UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def of_result() -> dict[str, Any]:
  """What every result says of its making: versions, commit and time."""
  return {'versions': versions(), 'commit': commit(), 'time': now()}


def versions() -> dict[str, str]:
  """Package -> version; the kind of device and Python's version too."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {'python': platform.python_version(), **found, 'device': jax.devices()[0].device_kind}


def commit() -> str:
  """Of this code, with '+changes' if files differ from it; '' outside a git checkout."""

  def git(*arguments):
    command = ['git', '-C', str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

  try:
    changed = git('status', '--porcelain', '--untracked-files=no').strip()
    return git('rev-parse', 'HEAD').strip() + ('+changes' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return ''
