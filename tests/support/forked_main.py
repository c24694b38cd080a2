"""main.py once for each case of a JSON file, each in a fork of this process, which has imported JAX.

    python -m tests.support.forked_main CASES RESULTS

CASES: {name: [argument, ...]}. RESULTS: {name: {'returncode': int, 'stdout': str, 'stderr': str}}.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def run(arguments, folder, first=lambda: None):
  """One case; folder holds what it prints. first: is called in the new process before anything else."""
  child = os.fork()
  if not child:
    for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
      os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv, code = ['main.py', *arguments], 1
    first()
    try:
      runpy.run_path('main.py', run_name='__main__')
    except SystemExit as stop:
      code = stop.code or 0
      if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  return {'returncode': code} | {n: (folder / n).read_text() for n in ('stdout', 'stderr')}


if __name__ == '__main__':
  import flax  # noqa: F401
  import jax  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401

  cases, results = map(Path, sys.argv[1:])
  found = {name: run(case, cases.parent) for name, case in json.loads(cases.read_text()).items()}
  results.write_text(json.dumps(found))
