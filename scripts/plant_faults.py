"""Plants known faults, one at a time, in a copy of this tree, and says whether the nearest tests catch them.

    python scripts/plant_faults.py [--only=WORD,...] [--jobs=2] [--results=FILE]

Each fault of planted_faults.py is a replacement in one file that runs without an exception and breaks
something that a field or docstring promises. A fault is caught if the tests named beside it fail, and
missed if they pass. --only takes the faults whose file or title contains one of the words. Results go
to FILE (.cache/planted-faults.json) as they come, and --go-on skips those that it has. --docs writes the
table into docs/testing.md. Exits 1 if a fault is missed, 2 if one no longer applies: its old text must
stand in its file exactly once.
"""

import argparse
import concurrent.futures
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from planted_faults import FAULTS, Fault
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from diffusion_jax.reporting.tables import markdown_table

ROOT = Path(__file__).parents[1]
CAUGHT, MISSED, VOID, BROKEN = 'caught', 'missed', 'does not apply', 'tests fail without it'
LIMIT_S = 900  # For the tests of one fault.
BEGIN, END = '<!-- planted faults -->', '<!-- end of planted faults -->'


def copy_tree(target: Path) -> None:
  """The files that git knows, or would."""
  listed = ['git', '-C', str(ROOT), 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
  for name in subprocess.run(listed, capture_output=True, check=True, text=True).stdout.split('\0'):
    if name and ((ROOT / name).is_file() or (ROOT / name).is_symlink()):
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, target / name, follow_symlinks=False)


def applies(fault: Fault) -> bool:
  """Whether its old text stands in its file exactly once."""
  path = ROOT / fault.file
  return path.is_file() and path.read_text().count(fault.old) == 1


def run_tests(tree: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess:
  """pytest, until the first failure."""
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'xla'))
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache}
  environment['PYTHONDONTWRITEBYTECODE'] = '1'  # A file changed twice in a second looks unchanged.
  command = [sys.executable, '-m', 'pytest', '-q', '-x', '-m', 'not slow and not full', *tests]
  return subprocess.run(
    command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S
  )


def try_fault(tree: Path, fault: Fault) -> dict[str, str]:
  """Plants it in `tree`, runs its tests and restores the file."""
  path = tree / fault.file
  whole = path.read_text()
  path.write_text(whole.replace(fault.old, fault.new))
  try:
    done = run_tests(tree, fault.tests)
    failed = [line for line in done.stdout.splitlines() if line.startswith(('FAILED', 'ERROR'))]
    if done.returncode == 1:
      return {'result': CAUGHT, 'by': failed[0].split(' - ')[0] if failed else ''}
    if done.returncode == 0:
      return {'result': MISSED, 'by': ''}
    return {'result': BROKEN, 'by': (done.stdout + done.stderr)[-500:]}
  except subprocess.TimeoutExpired:
    return {'result': CAUGHT, 'by': f'no end within {LIMIT_S} s'}
  finally:
    path.write_text(whole)


def table(results: dict[str, dict[str, str]]) -> str:
  """Markdown: room, fault, and what caught it."""
  rows = []
  for fault in FAULTS:
    found = results.get(fault.title, {'result': 'not run', 'by': ''})
    by = found['by'].removeprefix('FAILED ').removeprefix('ERROR ').split('[')[0]
    name = by.split('::')[-1] if '::' in by else by
    file = fault.file.removeprefix('diffusion_jax/')
    rows.append([file, fault.title, found['result'], name.replace('_', ' ')])
  return markdown_table(['file', 'fault', 'result', 'first test that fails'], rows, left=range(4))


def write_docs(results: dict[str, dict[str, str]]) -> None:
  """Puts the table, dated, between the two comments of docs/testing.md."""
  path = ROOT / 'docs' / 'testing.md'
  before, rest = path.read_text().split(BEGIN)
  counts = {kind: sum(r['result'] == kind for r in results.values()) for kind in (CAUGHT, MISSED)}
  said = f'{datetime.date.today()}: {counts[CAUGHT]} caught, {counts[MISSED]} missed.'
  path.write_text(f'{before}{BEGIN}\n{said}\n\n{table(results)}\n{END}{rest.split(END)[1]}')


def main() -> int:
  """0 if every fault is caught."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--only', default='', help='words of files or titles, separated by commas')
  parser.add_argument('--jobs', type=int, default=2, help='faults at a time, each in its own copy')
  parser.add_argument('--results', default=str(ROOT / '.cache' / 'planted-faults.json'))
  parser.add_argument('--go-on', action='store_true', help='skip the faults that FILE has')
  parser.add_argument('--docs', action='store_true', help='write the table into docs/testing.md')
  given = parser.parse_args()
  words = [word for word in given.only.split(',') if word]
  chosen = [f for f in FAULTS if not words or any(w in f.file or w in f.title for w in words)]
  path = Path(given.results)
  results = json.loads(path.read_text()) if path.exists() else {}
  results = {f.title: results[f.title] for f in FAULTS if f.title in results}
  if given.go_on:
    chosen = [fault for fault in chosen if fault.title not in results]

  def note(fault: Fault, found: dict[str, str]) -> None:
    results[fault.title] = found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + '\n')
    tqdm.write(f'{found["result"]:15s} {fault.file}: {fault.title}  {found["by"][:120]}')

  with tempfile.TemporaryDirectory() as temporary:
    trees = [Path(temporary) / str(number) for number in range(given.jobs)]
    for tree in trees:
      copy_tree(tree)
    free = list(trees)

    def work(fault: Fault) -> None:
      tree = free.pop()
      try:
        note(fault, try_fault(tree, fault) if applies(fault) else {'result': VOID, 'by': ''})
      finally:
        free.append(tree)

    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
      list(tqdm(pool.map(work, chosen), total=len(chosen), unit='fault'))
  if given.docs:
    write_docs(results)
  found = [results[fault.title]['result'] for fault in chosen]
  print(', '.join(f'{found.count(kind)} {kind}' for kind in (CAUGHT, MISSED, VOID, BROKEN)))
  return 2 if VOID in found or BROKEN in found else int(MISSED in found)


if __name__ == '__main__':
  sys.exit(main())
