"""Whether this code computes the right thing on an accelerator, and how fast, in one command.

    python scripts/accelerator_report.py [--out=FOLDER | --write-docs] [--budget=SECONDS] [--wheels=FOLDER]

Needs jax, flax, optax and orbax-checkpoint with their own requirements; neither TensorFlow, clu,
ml-collections nor data. On a machine without a network: `--pack FOLDER` here, carry FOLDER there, and
run with `--wheels FOLDER`, which takes from it what is missing.

Writes FOLDER/accelerator-KIND.json and .md, KIND being the device; --write-docs writes to docs/. Every
piece (a group of checks, or one measurement) runs in a process of its own and is stored as soon as it is
done. A rerun skips the stored ones, with --retry only those without an error. Exit 0: all pieces are
there; 75: the budget ended before, the same command goes on; 1: all are there and a check failed or a
piece has an error. --size=tiny is for trying the script itself, on a CPU too.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIECE_LIMIT = 570.0  # Seconds.
GRACE = 45.0  # Seconds that a piece may run past the budget before it is put off.
INTERRUPTED = 75
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def parse(arguments: list[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--size', choices=('full', 'tiny'), default='full')
  parser.add_argument('--out', type=Path, default=ROOT / 'runs' / 'accelerator')
  parser.add_argument('--write-docs', action='store_true', help='--out is docs/')
  parser.add_argument('--budget', type=float, default=540.0, help='seconds; no piece begins later')
  parser.add_argument('--only', default='', help='a regular expression of pieces')
  parser.add_argument('--retry', action='store_true', help='try pieces with an error again')
  parser.add_argument('--wheels', type=Path, help='a folder that --pack has filled')
  parser.add_argument('--pack', type=Path, help='fill this folder with wheels, and nothing else')
  parser.add_argument('--worker', nargs='+', help=argparse.SUPPRESS)
  args = parser.parse_args(arguments)
  if args.write_docs:
    args.out = ROOT / 'docs'
  return args


def store(path: Path, record: dict) -> None:
  """Writes a JSON file whole or not at all."""
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(record, indent=1) + '\n')
  temporary.replace(path)


def now() -> str:
  """UTC, to the second."""
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def machine() -> dict:
  """Device, backend and versions, which open the device."""
  import jax

  from diffusion_jax.runtime.provenance import commit

  device = jax.local_devices()[0]
  return {
    'device': device.device_kind,
    'backend': jax.default_backend(),
    'device_version': getattr(device.client, 'platform_version', '').replace('\n', ' '),
    'devices': jax.local_device_count(),
    'memory_bytes': (device.memory_stats() or {}).get('bytes_limit'),
    'python': platform.python_version(),
    **{name: importlib.metadata.version(name) for name in PACKAGES},
    'commit': commit(),
  }


def work(size: str, names: list[str], folder: Path, budget: float) -> None:
  """A worker: runs pieces and stores each as folder/NAME.json. The name 'machine' describes it."""
  from accelerator.pieces import pieces

  known, started = pieces(size), time.perf_counter()
  for name in names:
    began = time.perf_counter()
    if began - started > budget:
      return
    try:
      result = {'result': machine() if name == 'machine' else known[name]()}
    except Exception as error:  # The others go on.
      text = f'{type(error).__name__}: {error}'
      result = {'error': text[:2000], 'trace': traceback.format_exc()[-4000:]}
    store(folder / f'{name}.json', result | {'seconds': time.perf_counter() - began, 'date': now()})


def run_worker(
  args: argparse.Namespace, names: list[str], limit: float, keep: Callable[[str, dict], None]
) -> str:
  """One worker process; keep(name, piece) is called as soon as a piece is stored.

  Returns: '', or why the process failed.
  """
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    command = [sys.executable, str(Path(__file__).resolve()), f'--size={args.size}']
    command += [f'--wheels={args.wheels}'] if args.wheels else []
    command += [f'--out={folder}', f'--budget={limit - GRACE}', '--worker', *names]
    environment = dict(os.environ)
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
        if process.poll() is None:
          os.killpg(process.pid, signal.SIGKILL)  # Its own processes too.
          process.wait()
      log.seek(0)
      return f'exit {code}: {log.read()[-1500:]}' if code else ''


def run_pieces(args: argparse.Namespace, path: Path, record: dict, names: list[str], began) -> None:
  """Runs `names` within the budget and stores each in the record at once."""

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
    batch = waiting[:1] if alone else list(waiting)
    why = run_worker(args, batch, limit, keep)
    if not why and waiting:
      continue
    if why and batch[-1] in waiting:
      name = next(name for name in batch if name in waiting)
      put_off = why.startswith('took') and limit < PIECE_LIMIT and not (first and name == names[0])
      if put_off:  # A piece is at fault only if it had a whole budget.
        return
      keep(name, {'error': why, 'date': now()})


def unfinished(args: argparse.Namespace, record: dict, names: list[str]) -> list[str]:
  """Pieces that are not stored, or whose error is to be tried again."""
  done = record['pieces']
  return [n for n in names if n not in done or (args.retry and 'error' in done[n])]


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
    work(args.size, args.worker, args.out, args.budget)
    return 0
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

  from accelerator.pieces import names_of

  names = [name for name in names_of(args.size) if re.search(args.only, name)]
  todo = unfinished(args, record, names)
  print(f'{here["device"]}: {len(todo)} of {len(names)} pieces to do', flush=True)
  run_pieces(args, path, record, todo, began)
  store(path, record)
  from accelerator import markdown

  path.with_suffix('.md').write_text(markdown.report(record))
  print(f'{path.with_suffix(".md")} and .json')
  left = [name for name in names if name not in record['pieces']]
  if left:
    print(f'{len(left)} pieces left: run the same command again')
    return INTERRUPTED
  return 1 if markdown.failures(record) else 0


if __name__ == '__main__':
  sys.exit(main())
