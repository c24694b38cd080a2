"""Whether this code computes the right thing on an accelerator, how fast, and what it learns: one command.

    python scripts/accelerator_report.py [--cifar=ARCHIVE --train_minutes=M]

Repeat it until it exits with 0 or 1; every run takes less than ten minutes. In this order: correctness; the
speeds that are wanted, with torch.compile beside them where PyTorch is installed; a training run on CIFAR-10,
if there is an archive of it; more systems, with attention by XLA and by cuDNN.

  --cifar=ARCHIVE    images as train|test/CLASS/FILE in a tar, zip or folder; without it nothing is trained
  --train_minutes=M  minutes of training steps, over as many runs as that takes (10); with more later it goes on
  --out=FOLDER       where everything is written (runs/accelerator); --write-docs: report and pictures to docs/
  --budget=SECONDS   of this run (540): no piece begins later, and the last may take 45 seconds more
  --only=REGEX       pieces by name: 'check', 'goal.dit', 'cifar', 'goal|cifar' ...
  --retry            pieces that have an error, again
  --pack=FOLDER      fills a folder with pure-Python packages for a machine without a network, and does nothing
                     else; carry it there, and --wheels=FOLDER takes from it what is missing
  --size=tiny        tries the script itself, on a CPU too

Needs jax, flax, optax and orbax-checkpoint with their own requirements, and for the training what else
requirements-core.txt lists; never TensorFlow, clu or ml-collections. Writes FOLDER/accelerator-KIND.json and
.md, KIND being the device, and pictures beside them: these files are the result. FOLDER/cifar10-KIND is the
work directory of the training, gigabytes of data and checkpoints; without it a training starts anew.

Every piece (a group of checks, one measurement, a part of the training) runs in a process of its own and is
stored as soon as it is done. A rerun skips what is stored. It goes on after a kill too, the training from its
newest checkpoint. Exit 0: all is there; 75: run the same command again; 1: all is there, and a check failed or
a piece has an error; 2: the command cannot work.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PIECE_LIMIT = 570.0  # Seconds.
GRACE = 45.0  # Seconds that a piece may run past the budget before it is put off.
INTERRUPTED = 75


def parse(arguments: list[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cifar', type=Path, help='an archive or folder train|test/CLASS/FILE')
  parser.add_argument('--train_minutes', type=float, default=10.0)
  parser.add_argument('--size', choices=('full', 'tiny'), default='full')
  parser.add_argument('--out', type=Path, default=ROOT / 'runs' / 'accelerator')
  parser.add_argument('--write-docs', action='store_true', help='--out is docs/')
  parser.add_argument('--budget', type=float, default=540.0, help='seconds; no piece begins later')
  parser.add_argument('--only', default='', help='a regular expression of pieces')
  parser.add_argument('--retry', action='store_true', help='try pieces with an error again')
  parser.add_argument('--wheels', type=Path, help='a folder that --pack has filled')
  parser.add_argument('--pack', type=Path, help='fill this folder with wheels, and nothing else')
  parser.add_argument('--worker', nargs='+', help=argparse.SUPPRESS)
  parser.add_argument('--store', type=Path, help=argparse.SUPPRESS)
  parser.add_argument('--workdir', type=Path, help=argparse.SUPPRESS)
  parser.add_argument('--backend', default='', help=argparse.SUPPRESS)
  args = parser.parse_args(arguments)
  args.runs = args.out.absolute()  # Of work directories: not docs/.
  if args.write_docs:
    args.out = ROOT / 'docs'
  if args.cifar and not args.cifar.exists():
    parser.error(f'--cifar: {args.cifar} does not exist')
  if not args.train_minutes > 0:
    parser.error(f'--train_minutes: got {args.train_minutes:g}, allowed > 0')
  return args


def run_worker(
  args: argparse.Namespace, names: list[str], limit: float, keep: Callable[[str, dict], None]
) -> str:
  """One worker process; keep(name, piece) is called as soon as a piece is stored.

  Returns: '', or why the process failed.
  """
  from accelerator.pieces import variables

  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    command = [sys.executable, str(Path(__file__).resolve()), f'--size={args.size}']
    command += [f'--wheels={args.wheels}'] if args.wheels else []
    command += [f'--store={folder}', f'--budget={limit - GRACE}', f'--workdir={args.workdir}']
    command.append(f'--backend={args.backend}')
    command += (
      [f'--cifar={args.cifar}', f'--train_minutes={args.train_minutes}'] if args.cifar else []
    )
    command += ['--worker', *names]
    environment = {**os.environ, **variables(names)}
    if 'cpu' not in environment.get('JAX_PLATFORMS', 'cpu'):
      environment['JAX_PLATFORMS'] += ',cpu'  # References are computed there.
    if args.size == 'full':
      environment.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
    else:
      environment.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')  # Soon compiled.
    waiting, ends = list(names), time.monotonic() + limit
    with (folder / 'log').open('w+') as log:
      process = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
      )
      try:
        while True:
          code = process.poll()  # Before looking for files, so that none is missed.
          while waiting and (stored := folder / f'{waiting[0]}.json').exists():
            keep(waiting.pop(0), json.loads(stored.read_text()))
          if code is not None:
            break
          if time.monotonic() > ends:
            return f'took longer than {limit:.0f} s'
          time.sleep(0.1)
      finally:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(process.pid, signal.SIGKILL)  # Its own processes too, even if it has crashed.
        process.wait()
      log.seek(0)
      return f'exit {code}: {log.read()[-1500:]}' if code else ''


def run_pieces(args: argparse.Namespace, path: Path, record: dict, names: list[str], began) -> None:
  """Runs `names` within the budget and stores each in the record at once."""
  from accelerator.pieces import opens_device, resumes
  from accelerator.worker import now, store

  def keep(name, piece):
    record['pieces'][name] = piece
    waiting.remove(name)
    store(path, record)
    print(f'{name:<28} {piece.get("seconds", 0):7.1f} s  {piece.get("error", "")[:80]}', flush=True)

  waiting = list(names)
  while waiting and (left := args.budget - (time.monotonic() - began)) > 0:
    # At full size a process of its own: its peak of memory is the piece's, and a crash is its alone.
    alone, first = args.size == 'full', len(waiting) == len(names)
    limit = min(PIECE_LIMIT, left + GRACE) if alone else left + GRACE
    batch = waiting[:1]
    if not alone and opens_device(waiting[0]):
      batch = list(itertools.takewhile(opens_device, waiting))
    why = run_worker(args, batch, limit, keep)
    if why and batch[-1] in waiting:
      name = next(name for name in batch if name in waiting)
      whole = limit >= PIECE_LIMIT or (first and name == names[0])
      put_off = why.startswith('took') and (resumes(name) or not whole)
      if put_off:  # A piece is at fault only if it had a whole budget.
        return
      keep(name, {'error': why, 'date': now()})


def unfinished(
  args: argparse.Namespace, record: dict, names: list[str], retry: bool = False
) -> list[str]:
  """Pieces that are not stored, that want more minutes, or whose error is to be tried again."""
  from accelerator import cifar

  done = record['pieces']

  def is_left(name):
    if name not in done:
      return True
    if 'error' in done[name]:
      return retry
    return not cifar.is_done(name, done, args.train_minutes)

  return [name for name in names if is_left(name)]


def in_order(names: Iterable[str], size: str) -> list[str]:
  """The names of stored pieces in the order of the report, whatever order they were run in."""
  from accelerator.pieces import names_of

  known = names_of(size, trains=True)
  return sorted(names, key=lambda n: known.index(n) if n in known else len(known))


def training_of(args: argparse.Namespace) -> Any | None:
  """What the pieces of the training need, or None without an archive."""
  from accelerator.cifar import Request

  if not args.cifar:
    return None
  archive, deadline = str(args.cifar.absolute()), time.monotonic() + args.budget
  return Request(archive, args.train_minutes, args.workdir, args.size, args.backend, deadline)


def main(arguments: list[str] | None = None) -> int:
  """Returns: the exit code."""
  args, began = parse(arguments), time.monotonic()
  sys.path.insert(0, str(ROOT))
  from accelerator import wheels

  if args.pack:
    wheels.pack(args.pack)
    return 0
  if args.wheels:
    wheels.use(args.wheels)
  if args.worker:
    from accelerator import worker

    worker.end_with_parent()
    worker.work(args.size, args.worker, args.store, args.budget, training_of(args))
    return 0
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))  # Ends the worker too.
  probed: dict[str, dict] = {}
  why = run_worker(args, ['machine'], 120.0, probed.__setitem__)
  found = probed.get('machine', {'error': why})
  if 'error' in found:
    print(f'no device could be opened: {found["error"]}', file=sys.stderr)
    return 2
  here = found['result']
  kind = re.sub('[^a-z0-9]+', '-', here['device'].lower()).strip('-')
  args.out.mkdir(parents=True, exist_ok=True)
  suffix = '' if args.size == 'full' else f'-{args.size}'
  path = args.out / f'accelerator-{kind}{suffix}.json'
  args.workdir, args.backend = args.runs / f'cifar10-{kind}{suffix}', here['backend']
  new = {'size': args.size, 'machine': here, 'pieces': {}}
  record = json.loads(path.read_text()) if path.exists() else new
  changed = [name for name, value in record['machine'].items() if here.get(name) != value]
  if changed:
    print(
      f'{path}: made with another {", ".join(changed)}; move it away, or choose another --out',
      file=sys.stderr,
    )
    return 2
  record['command'] = ' '.join(['python scripts/accelerator_report.py', *sys.argv[1:]])

  from accelerator import cifar
  from accelerator.pieces import names_of

  if args.cifar:
    cifar.forget_lost(record['pieces'], args.workdir)
  known = names_of(args.size, bool(args.cifar))
  names = [name for name in known if re.search(args.only, name)]
  todo = unfinished(args, record, names, args.retry)
  print(f'{here["device"]}: {len(todo)} of {len(names)} pieces to do', flush=True)
  run_pieces(args, path, record, todo, began)
  from accelerator import markdown, worker

  if args.workdir.exists():
    record['pictures'] = cifar.copy_pictures(args.workdir, path.with_suffix(''))
  record['pieces'] = {n: record['pieces'][n] for n in in_order(record['pieces'], args.size)}
  worker.store(path, record)
  path.with_suffix('.md').write_text(markdown.report(record))
  print(f'{path.with_suffix(".md")} and .json')
  left = unfinished(args, record, names)
  if left:
    print(f'{len(left)} pieces left: run the same command again')
    return INTERRUPTED
  return 1 if markdown.failures(record) else 0


if __name__ == '__main__':
  sys.exit(main())
