"""Joins the processes of one run, one a host or a GPU, before anything touches a device.

Process 0 is the coordinator, which all others reach over the network. Where it is comes from flags, or from
what started the processes: a TPU pod, Slurm's srun, or Open MPI.
"""

import glob
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from diffusion_jax.errors import InputError, Stop

LOGS = 'logs'  # The folder in a work directory.
HEARTBEAT = 60  # Seconds after which the other processes end, if one no longer answers.
EXAMPLE = '--coordinator=10.0.0.2:8476 --num_processes=2 --process_id=0'


class Flags(NamedTuple):
  """The command's flags; None where one is not given."""

  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def arguments(flags: Flags, environment: Mapping[str, str]) -> dict[str, Any] | None:
  """Returns the arguments of jax.distributed.initialize, or None where a single process runs.

  Slurm sets most of its variables in batch scripts and interactive shells too, where a command is a single
  process; SLURM_STEP_NUM_TASKS > 1 means that srun started several. JAX finds the rest by itself.
  Raises: InputError for flags that do not say enough, or contradict each other.
  """
  coordinator, size, rank = flags
  mpi = int(environment.get('OMPI_COMM_WORLD_SIZE', 1)) > 1
  if coordinator and mpi:
    size = int(environment['OMPI_COMM_WORLD_SIZE']) if size is None else size
    rank = int(environment['OMPI_COMM_WORLD_RANK']) if rank is None else rank
  if coordinator or size is not None or rank is not None:
    return _given(coordinator, size, rank)
  if mpi and 'OMPI_MCA_orte_hnp_uri' not in environment:  # Open MPI 4 sets it, and JAX reads it.
    raise InputError(
      f'--coordinator is missing: Open MPI started {environment["OMPI_COMM_WORLD_SIZE"]} processes and does '
      'not say where the first one is; give its host and a free port, as --coordinator=HOST:8476'
    )
  if mpi or int(environment.get('SLURM_STEP_NUM_TASKS', 1)) > 1 or _on_tpu():
    return {}
  return None


def _given(coordinator: str | None, size: int | None, rank: int | None) -> dict[str, Any]:
  values = {'--coordinator': coordinator, '--num_processes': size, '--process_id': rank}
  missing = [name for name, value in values.items() if value is None]
  if missing:
    raise InputError(f'{", ".join(missing)}: missing; several processes need all three: {EXAMPLE}')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit():
    raise InputError(f'--coordinator: got {coordinator!r}, allowed HOST:PORT of process 0')
  if size < 1:
    raise InputError(f'--num_processes: got {size}, allowed >= 1')
  if not 0 <= rank < size:
    raise InputError(f'--process_id: got {rank}, allowed 0..{size - 1} with --num_processes={size}')
  return {'coordinator_address': coordinator, 'num_processes': size, 'process_id': rank}


def _on_tpu() -> bool:
  """Returns whether this machine is a TPU VM with JAX for TPUs."""
  devices = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  wanted = os.environ.get('JAX_PLATFORMS', 'tpu')
  return bool(devices) and 'tpu' in wanted and importlib.util.find_spec('libtpu') is not None


def join(flags: Flags) -> None:
  """Joins the other processes; a single process goes on alone.

  Raises: InputError as arguments, or if the coordinator cannot be reached.
  """
  found = arguments(flags, os.environ)
  if found is None:
    return
  import jax
  from jax._src.distributed import global_state  # The only way to the key-value store.

  from diffusion_jax.runtime import interruption, peers

  jax.config.update('jax_enable_preemption_service', False)  # It would take SIGTERM from us.
  try:
    jax.distributed.initialize(**found, heartbeat_timeout_seconds=HEARTBEAT)
  except (RuntimeError, ValueError) as error:
    where = found.get('coordinator_address', 'the coordinator')
    raise InputError(
      f'{where}: this process could not join the others ({str(error).splitlines()[0]}); every process needs '
      'the same coordinator, whose port is open and free, and a number of its own'
    ) from error
  client, number, count = global_state.client, jax.process_index(), jax.process_count()
  interruption.share(peers.Peers(client, number, count))


class _Log:
  """A stream whose text goes to a file; on the first process to the terminal too."""

  def __init__(self, terminal: TextIO, file: TextIO, number: int):
    self.number = number  # This process, from 0.
    self._terminal, self._file = terminal, file

  def write(self, text: str) -> int:
    self._file.write(text)
    return len(text) if self.number else self._terminal.write(text)

  def note(self, text: str) -> None:
    """Writes to the file alone."""
    self._file.write(text)

  def flush(self) -> None:
    self._file.flush()
    self._terminal.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._terminal, name)


def keep_logs(workdir: Path | None) -> None:
  """With several processes, lets the first one alone talk; each keeps DIR/logs/host-N.log, if there is DIR."""
  import jax

  if jax.process_count() == 1:
    return
  number, path = jax.process_index(), Path(os.devnull)
  if workdir is not None:
    path = workdir / LOGS / f'host-{number}.log'
    path.parent.mkdir(parents=True, exist_ok=True)
  sys.stdout = _Log(sys.stdout, path.open('a', buffering=1), number)


def complain(message: str, reason: Stop) -> None:
  """Prints an error to stderr and into the log; one that all processes have, on the first alone."""
  log = sys.stdout if isinstance(sys.stdout, _Log) else None
  if log:
    log.note(f'{message}\n')
    if log.number and reason.on_all:
      return
    if log.number:
      message = f'process {log.number}: {message}'
  print(message, file=sys.stderr)
