"""A training without a step ends, and says where its threads are; one that was stopped does not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUN = """
import sys, time
from pathlib import Path
from diffusion_jax.runtime.watchdog import Watchdog

def stuck_here():
  time.sleep(20)

with Watchdog(1, Path(sys.argv[1])) as watchdog:
  for _ in range(30):
    time.sleep(0.05)
    watchdog.beat()
  with watchdog.paused():
    time.sleep(1.5)
  with watchdog.allowing(1):
    time.sleep(1.5)
  print('waiting', flush=True)
  stuck_here()
"""


def test_no_beat_in_time_ends_the_process_with_all_stacks(tmp_path):
  command = [sys.executable, '-c', RUN, str(tmp_path)]
  pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
  running = subprocess.Popen(command, cwd=ROOT, **pipes)
  assert running.stdout.readline() == 'waiting\n'
  began = time.monotonic()
  os.kill(running.pid, signal.SIGSTOP)  # As a laptop or a batch system does: no hang.
  time.sleep(2)
  os.kill(running.pid, signal.SIGCONT)
  _, errors = running.communicate(timeout=30)
  assert running.returncode == 70 and 2.5 < time.monotonic() - began < 10
  assert 'config.train.watchdog_seconds' in errors and 'stuck_here' in errors
  assert 'stuck_here' in (tmp_path / 'logs' / 'stacks-0.txt').read_text()
