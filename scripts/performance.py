"""Measures speed on this machine and writes the tables into docs/performance.md: `make bench`.

    python scripts/performance.py [--only=REGULAR_EXPRESSION] [--print]

Runs --mode=bench for each of RUNS, one after the other; nothing else should run meanwhile. A section of the
page belongs to one kind of device and one run; the others stay as they are. --print changes no file.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'performance.md'
CIFAR = ['--config=configs/cifar10.py', '--config.sample.num_steps=10']
UNET = ['--config.model.name=unet', '--config.model.unet.dropout=0.0']
SMALL = ['--config.train.batch_size=8', '--config.sample.batch_size=8']
SPEED = ['--config.bench.name=speed']
TORCH = ['--config.bench.name=against_torch']
RUNS = {  # Title -> flags.
  'DiT-S/2, 256 tokens': [*CIFAR, *SMALL, *SPEED],
  'UNet of DDPM, 32x32': [*CIFAR, *UNET, *SMALL, *SPEED],
  'DiT-S/2, 256 tokens, beside PyTorch': [*CIFAR, *SMALL, *TORCH],
  'UNet of DDPM, 32x32, beside PyTorch': [*CIFAR, *UNET, *SMALL, *TORCH],
}


def measure(flags: list[str]) -> tuple[str, dict]:
  """Runs the benchmark. Returns: its table, and what it wrote."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, 'main.py', '--mode=bench', f'--workdir={folder}', *flags]
    printed = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
      for line in running.stdout:
        print(line, end='', flush=True)
        printed.append(line)
    if running.returncode:
      sys.exit(f'{" ".join(command)} ended with exit code {running.returncode}')
    (path,) = Path(folder).glob('bench-*.json')
    table = ''.join(printed).partition('\n\n')[2].rpartition('\nwritten to')[0].strip()
    return table, json.loads(path.read_text())


def section(title: str, flags: list[str], table: str, found: dict) -> str:
  """One section of the page."""
  command = ' '.join(['python main.py --mode=bench --workdir=runs/bench', *flags])
  date = datetime.datetime.now(datetime.UTC).date()
  versions = f'jax {found["versions"]["jax"]}, commit {found["commit"][:7] or "unknown"}'
  return f'### {title}\n\n{date}, {versions}\n\n```\n{command}\n\n{table}\n```\n'


def replaced(page: str, device: str, title: str, text: str) -> str:
  """The page with this section in place of the one that has its title on this device, or at the end."""
  first, last = f'<!-- {device}: {title} -->', f'<!-- end of {device}: {title} -->'
  block = f'{first}\n{text}{last}\n'
  pattern = re.escape(first) + '.*' + re.escape(last) + '\n'
  if re.search(pattern, page, re.DOTALL):
    return re.sub(pattern, lambda _: block, page, flags=re.DOTALL)
  return f'{page.rstrip()}\n\n{block}'


def main() -> None:
  """Measures what is asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--only', default='', help='a regular expression of titles')
  parser.add_argument('--print', action='store_true', help='change no file')
  args = parser.parse_args()
  for title, flags in RUNS.items():
    if not re.search(args.only, title):
      continue
    print(f'{title}: a few minutes', flush=True)
    table, found = measure(flags)
    text = section(title, flags, table, found)
    if args.print:
      print(text)
    else:
      PAGE.write_text(replaced(PAGE.read_text(), found['device'], title, text))


if __name__ == '__main__':
  main()
