"""Whether training resumes bit for bit on this device."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from accelerator import systems
from accelerator.checks import row
from diffusion_jax.runtime.checkpoint import Checkpoints, checksums

STEPS = 6


def check(size: str) -> list[dict[str, Any]]:
  """A run, and another process that goes on from its checkpoint, with deterministic kernels.

  Opens no device itself: both processes need it.
  """
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  with tempfile.TemporaryDirectory() as folder:
    found = []
    for start in (0, STEPS // 2):
      command = [sys.executable, *command_of(size, folder, start)]
      done = subprocess.run(command, env=environment, capture_output=True, text=True)
      if done.returncode:
        raise RuntimeError(f'steps from {start} on failed: {done.stderr.strip()[-1500:]}')
      found.append(json.loads((Path(folder) / f'{start}.json').read_text()))
  whole, resumed = found
  wrong = [name for name in whole if whole[name] != resumed.get(name)]
  note = f'{len(whole)} arrays, {STEPS} steps' + (f'; first {wrong[0]}' if wrong else '')
  return [row('arrays that differ after a resume', float(len(wrong)), 0.0, note)]


def command_of(size: str, folder: str, start: int) -> list[str]:
  """Arguments of Python for continue_run in a process of its own, with this one's sys.path."""
  code = (
    'import json, sys; sys.path[:] = json.loads(sys.argv[1]); from accelerator import resume; '
    'resume.continue_run(sys.argv[2], sys.argv[3], int(sys.argv[4]))'
  )
  return ['-c', code, json.dumps(sys.path), size, folder, str(start)]


def continue_run(size: str, folder: str, start: int) -> None:
  """From step 0 with a checkpoint half way, or from that one; writes the checksums of the last state."""
  sizes = systems.SIZES[size]
  dtype = jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  module = systems.make_dit(sizes, 's', 'xla', dtype)
  training = systems.diffusion_training(module, sizes.latent_shape, 'dit', 8, 0)
  step = jax.jit(training.step, donate_argnums=0)
  batch, state = training.make_batch(8), training.init()
  checkpoints = Checkpoints(Path(folder) / 'checkpoints')
  if start:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    state = checkpoints.restore(abstract, start).state
  for number in range(start, STEPS):
    if number == STEPS // 2 and not start:
      checkpoints.save(number, state, {})
      checkpoints.wait()
    state, _ = step(state, batch)
  (Path(folder) / f'{start}.json').write_text(json.dumps(checksums(state)))
  checkpoints.close()
