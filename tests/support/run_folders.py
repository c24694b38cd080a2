"""Work directories as training and evaluation leave them, made up: only what a report reads."""

import csv
import json
import re
from types import SimpleNamespace

import numpy as np

from configs import quickstart
from diffusion_jax.config.schema import Report
from diffusion_jax.experiment import stored
from diffusion_jax.stages import report

DIGITS = [str(digit) for digit in range(10)]
PROTOCOL = {
  'num_samples': 1000,
  'class_balance': 'balanced',
  'features': 'dataset_classifier',
  'features_digest': 'ab12cd34',
  'backend': 'jax',
  'reference': 'f00dfeed01234567',
  'reference_size': 297,
  'resize': 'none',
  'quantisation': 'floor(127.5 x + 128)',
  'metrics': {'fid': {}, 'inception_score': {'splits': 10}},
}
METRICS = {'frechet_distance': 9.7286, 'inception_score': 9.495, 'inception_score_std': 0.15}
PUBLISHED = {'name': 'DDPM', 'fid': 150.0, 'inception_score': 4.45, 'inception_score_std': 0.1}


def make_run(
  folder,
  *,
  metrics=METRICS,
  protocol=(),
  name='ddim50-cfg2',
  samples=(),
  deviation=(),
  seeds=1,
  changes=(),
  published=None,
  label_names=DIGITS,
  frames=None,
  labels=None,
  times=None,
  curves=(),
  time='2026-11-23T10:00:00+00:00',
  **others,
):
  """A run with one result; called again with another `name`, one more result.

  changes: flattened overrides of the config. frames: (F, R, H, W, C) uint8. curves: metrics.jsonl.
  """
  config = quickstart.get_config()
  config.update_from_flattened_dict(dict(changes))
  config = config.to_dict()
  config['published'] |= published or {}
  (folder / 'eval').mkdir(parents=True, exist_ok=True)
  stored.save(folder, config)
  data = {'name': config['data']['name'], 'label_names': label_names, 'image_shape': [8, 8, 1]}
  write(folder / 'data.json', {**data, 'fingerprint': '0' * 16})
  made = {'step': 1000, 'parameters': '0badf00d', 'average': 'ema', 'seed': 0, 'sampler': 'ddim'}
  made |= {'sampler.eta': 0.0, 'num_steps': 50, 'cfg_scale': 2.0, 'labels': 'balanced'}
  result = {
    'name': name,
    'metrics': dict(metrics),
    'seeds': [{'seed': seed, 'metrics': dict(metrics)} for seed in range(seeds)],
    'deviation': dict(deviation),
    'images_per_s': 45.25,
    'parameters': 1274116,
    'protocol': {**PROTOCOL, **dict(protocol)},
    'samples': {**made, **dict(samples)},
    'warnings': [],
    'time': time,
    **others,
  }
  write(folder / 'eval' / f'{name}.json', result)
  if curves:
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in curves))
  if frames is not None:
    make_frames(folder, name, frames, labels, times)
  return folder


def make_frames(folder, name, frames, labels=None, times=None):
  place = folder / 'samples' / name
  place.mkdir(parents=True, exist_ok=True)
  labels = np.arange(frames.shape[1]) if labels is None else labels
  times = np.linspace(1, 0, len(frames)) if times is None else times
  np.savez(
    place / 'frames.npz',
    frames=frames,
    labels=np.asarray(labels, np.int32),
    t=np.asarray(times, np.float32),
  )


def write(path, content):
  path.write_text(json.dumps(content))


def report_of(folder, num_classes=6, snapshots=5):
  """Writes the report of the runs below a folder. Returns: where it is."""
  sections = Report(num_classes=num_classes, num_snapshots=snapshots)
  report.main(SimpleNamespace(config=SimpleNamespace(report=sections), workdir=folder))
  return folder / 'report'


def markdown_tables(folder):
  """[(heading, [row as a mapping, ...]), ...] of table.md, read by the rules of GitHub."""
  found = []
  for section in re.split(r'^## ', (folder / 'table.md').read_text(), flags=re.M)[1:]:
    lines = [line for line in section.splitlines() if line.startswith('|')]
    cells = [re.split(r'(?<!\\)\|', line)[1:-1] for line in lines]
    cells = [[re.sub(r'\\(.)', r'\1', cell).strip() for cell in row] for row in cells]
    assert all(len(row) == len(cells[0]) for row in cells)
    assert all(re.fullmatch(r'-+:?', cell) for cell in cells[1])
    found.append((section.splitlines()[0], [dict(zip(cells[0], row)) for row in cells[2:]]))
  return found


def csv_rows(folder):
  with open(folder / 'table.csv', newline='') as file:
    return list(csv.DictReader(file))
