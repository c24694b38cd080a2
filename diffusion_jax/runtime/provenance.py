"""Records what made a result: package versions, the commit of this code and the time."""

import datetime
import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ('jax', 'jaxlib', 'flax', 'numpy', 'scipy')
ROOT = Path(__file__).resolve().parents[2]


def now() -> str:
  """Returns the time in UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def of_result() -> dict[str, Any]:
  """Returns what every result records: versions, commit and time."""
  return {'versions': versions(), 'commit': commit(), 'time': now()}


def versions() -> dict[str, str]:
  """Returns package -> version, with Python's version and the kind of device."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {'python': platform.python_version(), **found, 'device': jax.devices()[0].device_kind}


def commit() -> str:
  """Returns the commit of this code, with '+changes' if files differ; '' where it is no checkout of its own."""

  def git(*arguments):
    command = ['git', '-C', str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

  try:
    if Path(git('rev-parse', '--show-toplevel').strip()) != ROOT:  # Within another checkout.
      return ''
    changed = git('status', '--porcelain', '--untracked-files=no').strip()
    return git('rev-parse', 'HEAD').strip() + ('+changes' if changed else '')
  except (OSError, subprocess.SubprocessError):
    return ''
