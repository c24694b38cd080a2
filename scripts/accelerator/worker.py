"""The process that runs pieces: it opens the device, or lets their own processes do so."""

import datetime
import importlib.metadata
import json
import os
import platform
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def store(path: Path, record: dict) -> None:
  """Writes a JSON file whole or not at all."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(record, indent=1) + '\n')
  temporary.replace(path)


def now() -> str:
  """UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def machine() -> dict:
  """Device, backend and versions, which open the device."""
  import jax

  from diffusion_jax.runtime.provenance import commit

  device = jax.local_devices()[0]
  return {
    'device': device.device_kind,
    'backend': jax.default_backend(),
    'device_version': getattr(device.client, 'platform_version', '').replace('\n', ' '),
    'devices': jax.local_device_count(),
    'memory_bytes': (device.memory_stats() or {}).get('bytes_limit'),
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in PACKAGES},
    'commit': commit(),
  }


def end_with_parent() -> None:
  """Ends this process, and those that it has started, when the one that started it is gone."""
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(0.5)
    os.killpg(os.getpgid(0), signal.SIGKILL)

  threading.Thread(target=watch, daemon=True).start()


def work(
  size: str, names: list[str], folder: Path, budget: float, training: Any | None = None
) -> None:
  """A worker: runs pieces and stores each as folder/NAME.json. The name 'machine' describes it."""
  from accelerator.pieces import pieces

  known, started = pieces(size, training), time.perf_counter()
  for name in names:
    began = time.perf_counter()
    if began - started > budget:
      return
    try:
      result = {'result': machine() if name == 'machine' else known[name]()}
    except Exception as error:  # The others go on.
      text = f'{type(error).__name__}: {error}'
      result = {'error': text[:2000], 'trace': traceback.format_exc()[-4000:]}
    store(folder / f'{name}.json', result | {'seconds': time.perf_counter() - began, 'date': now()})
