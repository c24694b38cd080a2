"""Run by test_hosts.py: one process of several that sample or evaluate together, as main.py does.

    python -m tests.support.hosts_sample FOLDER NUM_PROCESSES PROCESS PORT FLAGS

FOLDER/run is a trained work directory, FLAGS a JSON object of what the command line changes, 'mode',
and 'swept': the fields of --mode=sweep --keep_samples=false.
The exit code is that of main.py.
"""

import json
import sys
import time
from pathlib import Path

import jax

from diffusion_jax.command import run_mode
from diffusion_jax.config.sweep import Flags
from diffusion_jax.errors import Stop
from diffusion_jax.sampling import sample_set
from tests.conftest import tiny_mapping


def main(folder: Path, num_processes: int, process: int, port: str, flags: dict) -> int:
  if num_processes > 1:
    jax.distributed.initialize(f'127.0.0.1:{port}', num_processes, process)
  assert jax.process_count() == num_processes
  flags = {key: tuple(value) if isinstance(value, list) else value for key, value in flags.items()}
  mode, swept = flags.pop('mode', 'sample'), Flags()
  if mode == 'sweep':
    swept = Flags(flags.pop('swept'), keep_samples=False)
  save, written = sample_set.save_part, []

  def counted(folder, index, made, labels):
    time.sleep(process)  # The first does not look for parts before the last is written.
    written.extend(index)
    save(folder, index, made, labels)

  sample_set.save_part = counted
  try:
    run_mode(mode, tiny_mapping(folder, **flags), flags, folder / 'run', swept=swept)
  except Stop as stop:
    print(
      f'process {process}: {stop}', file=sys.__stdout__
    )  # sys.stdout is the log of the host by now.
    return stop.exit_code
  print(f'process {process} wrote {len(written)}', file=sys.__stdout__)
  return 0


if __name__ == '__main__':
  numbers = int(sys.argv[2]), int(sys.argv[3])
  sys.exit(main(Path(sys.argv[1]), *numbers, sys.argv[4], json.loads(sys.argv[5])))
