"""Pure-Python packages for a machine that has jax but cannot reach a package index."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# Packages without compiled code that flax, optax and orbax-checkpoint import beside jax.
PACKAGES = (
  *('absl-py', 'aiofiles', 'cloudpickle', 'etils', 'flax', 'fsspec', 'humanize'),
  *('importlib_resources', 'nest_asyncio', 'optax', 'orbax-checkpoint', 'rich', 'pygments'),
  *('markdown-it-py', 'mdurl', 'treescope', 'typing_extensions', 'zipp'),
)
MAX_BYTES = 20_000_000


def pack(folder: Path) -> None:
  """Downloads the wheels. Raises: SystemExit if they come to MAX_BYTES or more."""
  command = [sys.executable, '-m', 'pip', 'download', '-q', '--disable-pip-version-check']
  command += ['--no-deps', '--only-binary=:all:', '--platform=any', '--dest', str(folder)]
  subprocess.run([*command, *PACKAGES], check=True)
  wheels = sorted(folder.glob('*.whl'))
  size = sum(path.stat().st_size for path in wheels)
  print(f'{len(wheels)} wheels, {size / 1e6:.1f} MB in {folder}')
  if size >= MAX_BYTES:
    raise SystemExit(f'{folder}: {size} bytes, allowed below {MAX_BYTES}')


def use(folder: Path) -> None:
  """Puts the wheels behind everything that is installed, which wins.

  Raises: SystemExit if the folder has none.
  """
  wheels = sorted(folder.glob('*.whl'))
  if not wheels:
    raise SystemExit(f'--wheels: got {folder}, which has no wheels; --pack fills a folder')
  site = tempfile.TemporaryDirectory(prefix='wheels-')
  for path in wheels:
    with zipfile.ZipFile(path) as archive:
      archive.extractall(site.name)
  sys.path.append(site.name)
  use.kept = site  # Removed with the process.
