"""A training run on CIFAR-10 for the minutes given, over as many commands as that takes.

The product trains, in a process of its own: SIGTERM ends it with a checkpoint when the minutes or the time of
the command are over, and the next command resumes from there, as after a kill. Nothing here opens the device.
The minutes are those of training steps, by metrics.jsonl; compiling, previews and distances come on top.
"""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ('prepare', 'train', 'evaluate')
SCALES = (1.0, 2.0)  # Of guidance.
SHOWN = 12  # Points of a curve.
PICTURES = 3  # Previews that are copied.
STOPS_WITHIN = 40.0  # Seconds from SIGTERM to the end of the process: it writes a checkpoint.
INTERRUPTED = 75
MARGIN = 1.0  # Seconds short of the minutes that count as all of them.


@dataclasses.dataclass(frozen=True)
class Request:
  """archive: train|test/CLASS/FILE. backend: JAX's. deadline: of this process, by time.monotonic."""

  archive: str
  minutes: float
  workdir: Path
  size: str
  backend: str
  deadline: float


def run(name: str, request: Request) -> dict[str, Any]:
  """Runs one of NAMES."""
  request.workdir.mkdir(parents=True, exist_ok=True)
  return {'prepare': prepare, 'train': train, 'evaluate': evaluate}[name](request)


def prepare(request: Request) -> dict[str, Any]:
  """Decodes the images and trains the classifier whose features of the test set samples are compared with."""
  seconds = {}
  for mode in ('prepare', 'reference'):
    began = time.monotonic()
    finish(mode, start(mode, request, {}), request)
    seconds[mode] = time.monotonic() - began
  data = json.loads((request.workdir / 'data.json').read_text())
  counts = {
    name: data[name] for name in ('num_train', 'num_holdout', 'fingerprint') if name in data
  }
  return {'seconds': seconds, **counts}


def train(request: Request) -> dict[str, Any]:
  """Trains until the minutes or the command's time are over."""
  process, wanted = None, 60 * request.minutes - MARGIN
  while seconds_of(records(request.workdir)) < wanted and time.monotonic() < request.deadline:
    process = process or start('train', request, {})
    if process.poll() is not None:
      break
    time.sleep(0.2)
  if process:
    if process.poll() is None:
      process.send_signal(signal.SIGTERM)
    finish('train', process, request, (0, INTERRUPTED, -signal.SIGTERM))
  return summary(request.workdir, request.minutes)


def evaluate(request: Request) -> dict[str, Any]:
  """Makes samples at each scale of guidance and measures them against the test set."""
  rows = []
  for scale in SCALES:
    printed = finish('evaluate', start('evaluate', request, {'sample.cfg_scale': scale}), request)
    (path,) = re.findall('^written to (.+)$', printed, re.MULTILINE)[-1:]
    found = json.loads(Path(path).read_text())
    kept = ('name', 'metrics', 'images_per_s', 'real_baseline', 'features_notes', 'warnings')
    rows.append(
      {
        'cfg_scale': scale,
        'step': found['samples']['step'],
        'num_samples': found['protocol']['num_samples'],
        'parameters': found['parameters'],
        **{name: found.get(name) for name in kept},
      }
    )
  return {'rows': rows, 'trained_seconds': seconds_of(records(request.workdir))}


def start(mode: str, request: Request, given: Mapping[str, Any]) -> subprocess.Popen:
  """Begins a mode in a process that adds to WORKDIR/MODE.log."""
  code = (
    'import json, sys; sys.path[:] = json.loads(sys.argv[1]); '
    'from accelerator import cifar_command; cifar_command.main(*json.loads(sys.argv[2]))'
  )
  arguments = [mode, request.size, request.backend, request.archive, str(request.workdir), given]
  command = [sys.executable, '-c', code, json.dumps(sys.path), json.dumps(arguments)]
  with (request.workdir / f'{mode}.log').open('w') as log:
    # The flag tells a process that a signal ends how to exit.
    return subprocess.Popen([*command, f'--mode={mode}'], stdout=log, stderr=subprocess.STDOUT)


def finish(
  mode: str, process: subprocess.Popen, request: Request, allowed: Sequence[int] = (0,)
) -> str:
  """Waits for a process. Returns: what it printed. Raises: RuntimeError with its last lines."""
  try:
    code = process.wait(STOPS_WITHIN if mode == 'train' else None)
  except subprocess.TimeoutExpired:
    process.kill()  # What the last checkpoint holds stays.
    code = process.wait()
    allowed = (*allowed, code)
  printed = (request.workdir / f'{mode}.log').read_text(errors='replace')
  if code not in allowed:
    raise RuntimeError(f'--mode={mode} ended with {code}: {printed.strip()[-1500:]}')
  return printed


def records(workdir: Path) -> list[dict[str, Any]]:
  """The lines of metrics.jsonl; the last one may be in the making."""
  try:
    lines = (workdir / 'metrics.jsonl').read_text().split('\n')[:-1]
  except OSError:
    return []
  return [json.loads(line) for line in lines]


def logged(lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
  """(number of steps that it averages, line) of each line of the training log."""
  found, before = [], 0
  for line in lines:
    if 'step_time' in line:
      found.append((line.get('averaged_steps') or line['step'] - before, line))
      before = line['step']
  return found


def seconds_of(lines: Sequence[Mapping[str, Any]]) -> float:
  """Seconds of training steps."""
  return sum(count * line['step_time'] for count, line in logged(lines))


def summary(workdir: Path, minutes: float) -> dict[str, Any]:
  """What metrics.jsonl, the checkpoints and the config say of a training for so many minutes."""
  lines = records(workdir)
  logs, seconds = logged(lines), seconds_of(lines)
  steps = sum(count for count, _ in logs)

  def mean(name):
    return sum(count * line[name] for count, line in logs) / steps

  batch = logs[-1][1]['images_per_s'] * logs[-1][1]['step_time'] if logs else None
  checkpoints = [int(p.name) for p in (workdir / 'checkpoints').glob('*') if p.name.isdigit()]
  held_out = curve(lines, 'holdout_loss')
  looked = {step for step, _ in held_out} | {logs[i][1]['step'] for i in (0, -1) if logs}
  distances = sorted(
    {name for line in lines for name in line if '@' in name and '_std' not in name}
  )
  return {
    'config': described(workdir) if logs else None,
    'minutes': minutes,
    'trained_seconds': seconds,
    'steps': max(checkpoints, default=0),
    'batch_size': batch and round(batch),
    'images_per_s': batch * steps / seconds if logs else None,
    'mfu': mean('mfu') if logs else None,
    'data_wait': mean('data_wait') if logs else None,
    'skipped': sum(line['skipped'] > 0 for _, line in logs),
    'loss': [(line['step'], line['loss']) for _, line in logs if line['step'] in looked],
    'holdout_loss': held_out,
    'distances': {name: curve(lines, name) for name in distances},
  }


def described(workdir: Path) -> str:
  """The network in words."""
  config = json.loads((workdir / 'config.json').read_text())
  dit = config['model']['dit']
  return (
    f'DiT of {dit["depth"]} blocks, width {dit["hidden_size"]}, patches of {dit["patch_size"]}, '
    'as configs/cifar10.py has it'
  )


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
  """(step, value), the first and the last of SHOWN evenly chosen ones among them."""
  points = [(line['step'], line[name]) for line in lines if name in line]
  if len(points) <= SHOWN:
    return points
  return [points[round(i * (len(points) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def is_done(name: str, pieces: Mapping[str, Any], minutes: float) -> bool:
  """Whether a stored piece, without error, needs nothing more for so many minutes."""
  trained = pieces.get('cifar.train', {}).get('result', {}).get('trained_seconds', 0.0)
  if name == 'cifar.train':
    return trained >= 60 * minutes - MARGIN
  if name == 'cifar.evaluate':
    return pieces[name]['result']['trained_seconds'] == trained
  return True


def forget_lost(pieces: dict[str, Any], workdir: Path) -> None:
  """Drops a training whose samples are not measured yet and whose work directory is not on this machine."""
  measured = pieces.get('cifar.evaluate', {'error': ''})
  is_there = any(path.name.isdigit() for path in (workdir / 'checkpoints').glob('*'))
  if not is_there and ('error' in measured or not is_done('cifar.evaluate', pieces, 0.0)):
    pieces.pop('cifar.train', None)
    pieces.pop('cifar.evaluate', None)


def copy_pictures(workdir: Path, stem: Path) -> list[str]:
  """Copies previews and grids of samples beside the report, as STEM-*.png. Returns: their file names."""
  previews = sorted((workdir / 'previews').glob('step_*.png'))
  last = len(previews) - 1
  chosen = sorted({round(i * last / (PICTURES - 1)) for i in range(PICTURES)}) if previews else []
  found = {f'{stem.name}-preview-{previews[i].stem}.png': previews[i] for i in chosen}
  grids = sorted((workdir / 'samples').glob('*/grid.png'), key=lambda path: path.stat().st_mtime)
  for path in grids[-len(SCALES) :]:
    found[f'{stem.name}-samples-{path.parent.name}.png'] = path
  for kind in ('preview', 'samples'):
    for old in stem.parent.glob(f'{stem.name}-{kind}-*.png'):
      old.unlink()
  for name, path in found.items():
    shutil.copyfile(path, stem.parent / name)
  return list(found)
