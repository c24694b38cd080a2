"""main.py in several processes on this machine, as a cluster starts it on several hosts."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]


def start(*arguments, num_processes=2, devices=2, program=('main.py',), each=(), **environment):
  """Starts main.py in as many processes of so many CPU devices each.

  program: instead of main.py. each: further arguments of each process.
  """
  port = free_port()
  base = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  base.pop('XLA_FLAGS', None)
  joining = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={num_processes}']
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  running = []
  for number in range(num_processes):
    own = [*joining, f'--process_id={number}'] if num_processes > 1 else []
    own += each[number] if each else []
    command = [sys.executable, *program, *arguments, *own]
    running.append(subprocess.Popen(command, cwd=ROOT, env=base | environment, **pipes))
  return running


def finish(running, timeout=300):
  """Waits for all. Returns: exit codes, outputs, errors."""
  try:
    outputs = [process.communicate(timeout=timeout) for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], *zip(*outputs)


def wait_for(condition, running, timeout=400):
  """Waits until condition(), while all processes run."""
  ends = time.monotonic() + timeout
  while not condition():
    ended = [process for process in running if process.poll() is not None]
    assert not ended, [(p.returncode, *(text[-3000:] for text in p.communicate())) for p in ended]
    assert time.monotonic() < ends, f'not within {timeout} s'
    time.sleep(0.02)
