"""Kills a process at a chosen file operation, and main.py again and again in a chain.

    python -m tests.support.killing CHAIN RESULTS

CHAIN: {'arguments': [...], 'workdir': DIR, 'moments': [[pattern, number, seconds], ..., null]}, one run of
main.py a moment, each of which goes on from the former; null: it runs to its end. RESULTS: a list of
{'returncode', 'stdout', 'stderr', 'killed', 'saving', 'steps', 'leftovers'}, see watch.
"""

import dataclasses
import json
import os
import re
import signal
import sys
import threading
from pathlib import Path

from tests.support import forked_main

OPERATIONS = ('open', 'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'shutil.rmtree')
SAVING = '.orbax-checkpoint-tmp'
BEGUN = re.compile(r'^open \S*/metrics\.jsonl a ')  # Training is about to begin.
LEFTOVER = re.compile(r'\.tmp$|^\.probe-|orbax-checkpoint-tmp|\.lease-')


@dataclasses.dataclass(frozen=True)
class Moment:
  """seconds after the number-th file operation, from 1, whose 'operation path mode' has the pattern."""

  pattern: str
  number: int = 1
  seconds: float = 0.0


def leftovers(folder: Path) -> list[str]:
  """Lists the temporary files and folders below a folder, but those of a lease that is being renewed."""
  found = [p for p in folder.rglob('*') if LEFTOVER.search(p.name)]
  return sorted(str(p.relative_to(folder)) for p in found if not p.name.startswith('.train.lease'))


def steps(folder: Path) -> list[int]:
  """Lists the committed steps in DIR/checkpoints."""
  return sorted(int(p.name) for p in (folder / 'checkpoints').glob('*') if p.name.isdigit())


def watch(folder: Path, moment: Moment | None, log: Path) -> None:
  """From now on this process dies of SIGKILL at the moment, after a line in the log.

  Operations within `folder` count. The log says what was being done, which steps were committed then, and
  what leftovers there were when training began.
  """
  inside, count = threading.local(), 0

  def kill(what):
    inside.on = True
    saving = [p.name for p in (folder / 'checkpoints').glob(f'*{SAVING}')]
    note({'killed': what, 'saving': saving, 'steps': steps(folder)})
    os.kill(os.getpid(), signal.SIGKILL)

  def note(line):
    with open(log, 'a') as file:
      file.write(json.dumps(line) + '\n')

  def hook(event, arguments):
    nonlocal count
    if event not in OPERATIONS or getattr(inside, 'on', False):
      return
    what = ' '.join([event, *map(str, arguments)])
    if str(folder) not in what:
      return
    inside.on = True
    if BEGUN.search(what):
      note({'leftovers': leftovers(folder)})
    inside.on = False
    if moment and re.search(moment.pattern, what.replace(f'{folder}/', '')):
      count += 1
      if count == moment.number and moment.seconds:
        threading.Timer(moment.seconds, kill, [what]).start()
      elif count == moment.number:
        kill(what)

  sys.addaudithook(hook)


def noted(log: Path) -> dict:
  """Reads the log of `watch`."""
  return dict(pair for line in log.read_text().splitlines() for pair in json.loads(line).items())


def chain(arguments: list[str], folder: Path, moments: list[list | None], prints: Path) -> list:
  """Runs main.py to each of the moments in turn."""
  found = []
  for number, moment in enumerate(moments):
    log = prints / f'log-{number}'
    log.write_text('')
    wanted = moment and Moment(*moment)
    first = lambda wanted=wanted, log=log: watch(folder, wanted, log)  # noqa: E731
    result = forked_main.run(arguments, prints, first)
    found.append(result | noted(log))
  return found


if __name__ == '__main__':
  import clu.metric_writers  # noqa: F401
  import flax  # noqa: F401
  import jax  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401

  from diffusion_jax.stages import train  # noqa: F401

  given, results = map(Path, sys.argv[1:])
  given = json.loads(given.read_text())
  folder = Path(given['workdir'])
  results.write_text(
    json.dumps(chain(given['arguments'], folder, given['moments'], results.parent))
  )
