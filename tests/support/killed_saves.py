"""A save that is killed at each of many moments, in forks of a process that has imported JAX.

    python -m tests.support.killed_saves FOLDER NUMBER...

Saves steps 1 and 2 of tests/runtime/test_checkpoint.py's state, then dies at file operations NUMBER of
saving step 3, and at last saves it. Prints a JSON line a start: what it found, and how it ended.
"""

import json
import os
import sys
from pathlib import Path

from tests.support.killing import SAVING, Moment, leftovers, noted, watch


def start(folder: Path, number: int, wanted: list[int]) -> None:
  """Restores, and saves the steps that are wanted."""
  from diffusion_jax.runtime.checkpoint import Checkpoints
  from tests.runtime.test_checkpoint import abstract, assert_same, state

  watch(folder, Moment(SAVING, number) if number else None, folder.parent / 'log')
  checkpoints = Checkpoints(folder / 'checkpoints', keep_newest=2)
  restored = checkpoints.restore(abstract())
  found = {'restored': restored and restored.step, 'leftovers': leftovers(folder)}
  with open(folder.parent / 'log', 'a') as file:
    file.write(json.dumps(found) + '\n')
  if restored:
    assert not restored.damaged
    assert_same(restored.state, state(restored.step))
  for step in wanted:
    checkpoints.save(step, state(step), {})
  checkpoints.close()


if __name__ == '__main__':
  import jax  # noqa: F401
  import orbax.checkpoint  # noqa: F401

  folder = Path(sys.argv[1])
  for number, steps in [(0, [1, 2]), *((int(n), [3]) for n in sys.argv[2:]), (0, [3]), (0, [])]:
    (folder.parent / 'log').write_text('')
    child = os.fork()
    if not child:
      start(folder, number, steps)
      os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps({'code': code, **noted(folder.parent / 'log')}), flush=True)
