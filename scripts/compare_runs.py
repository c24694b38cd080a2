"""Compares what two checkouts wrote: the numbers, arrays and samples of same_as.py's two folders.

The tables say what has another name here than in the commit that is compared with.
"""

import json
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

FIELDS: dict[str, str] = {  # Config fields: REF's name -> the name here; '' where it is gone.
  'loss.label_drop': 'objective.denoising.class_dropout',
  **{
    f'loss.{name}': f'objective.denoising.{name}'
    for name in ('weighting', 'min_snr_gamma', 'vlb_weight')
  },
  **{
    f'vae.{name}': f'objective.autoencoder.{name}'
    for name in (
      *('kl_weight', 'perceptual_weight', 'perceptual_weights'),
      *(f'discriminator_{part}' for part in ('start', 'weight', 'channels', 'layers')),
    )
  },
  'process.prediction': 'process.prediction_type',
  'sample.ema': 'sample.average',
  'task': 'objective.name',
  'report.moments': 'report.num_snapshots',
  **{
    f'schedule.{name}.{field}': ''
    for name in ('cosine', 'linear', 'quadratic', 'straight')
    for field in ('time_distribution', 'logit_mean', 'logit_std')
  },
  'schedule.quadratic': 'schedule.scaled_linear',
  'schedule.straight': 'schedule.rectified_flow',
}
VALUES = {  # Fields here whose values have other names: REF's value -> the value here.
  'objective.name': {'diffusion': 'denoising'},
  'sample.average': {True: 'ema', False: ''},
}
FORMAT = {'format_version': 1}  # What config.json has here.
HOLDOUT_METRICS = {  # Held-out metrics: REF's name -> the name here.
  'psnr': 'holdout_psnr',
  'reconstruction': 'holdout_reconstruction',
  'kl': 'holdout_kl',
}
ARRAYS: list[tuple[str, str]] = [  # (regular expression in REF's path, replacement here).
  (r'^params/(?!model/|discriminator/)', 'params/model/'),
  (r'^ema_params/', 'averages/ema/model/'),
  (r'^opt_state/', 'opt_states/model/'),
  (r'^discriminator/', 'params/discriminator/'),
  (r'^discriminator_opt_state/', 'opt_states/discriminator/'),
]
RESHAPED = ['qkv/(kernel|bias)$']  # Paths here: the same entries in the same order, another shape.
CLOCK = {
  'images_per_s',
  'step_time',
  'data_wait',
  'device_memory',
  'mfu',
}  # Logged, never the same.


def steps_of(workdir: Path) -> list[int]:
  """The steps of a work directory's checkpoints, ascending."""
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdigit())


def arrays_of(workdir: Path, step: int) -> dict[str, np.ndarray]:
  """Path -> array of everything in a checkpoint, read without either side's code."""
  import jax
  import orbax.checkpoint as ocp

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Orbax misses the shardings, which do not matter here.
    folder = workdir.absolute() / 'checkpoints' / str(step) / 'state'
    state = ocp.PyTreeCheckpointer().restore(folder)
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
    for path, leaf in leaves
  }


def as_here(
  arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """REF's arrays by the paths, and in the shapes, that they have in this checkout."""
  found = {}
  for path, array in arrays.items():
    for pattern, replacement in ARRAYS:
      path = re.sub(pattern, replacement, path)
    shape = shapes.get(path, array.shape)
    if any(re.search(pattern, path) for pattern in RESHAPED) and math.prod(shape) == array.size:
      array = array.reshape(shape)
    found[path] = array
  return found


def logged(workdir: Path) -> dict[tuple[str, int, str], float]:
  """('train' or 'held out', step, name) -> every number of metrics.jsonl that is not of the clock."""
  found = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    values = json.loads(line)
    step = values.pop('step')
    kind = 'train' if 'loss' in values else 'held out'
    found.update({(kind, step, n): v for n, v in values.items() if n not in CLOCK})
  return found


def samples_of(workdir: Path) -> dict[str, np.ndarray]:
  """'images' and 'labels' of the only sample set, by number."""
  parts = [dict(np.load(p)) for p in sorted(workdir.glob('samples/*/part-*.npz'))]
  index = np.argsort(np.concatenate([part['index'] for part in parts]))
  return {n: np.concatenate([part[n] for part in parts])[index] for n in ('images', 'labels')}


def metrics_of(workdir: Path) -> dict[str, float]:
  """The metrics of the only evaluation."""
  (path,) = workdir.glob('eval/*.json')
  return json.loads(path.read_text())['metrics']


def compare(folder: Path, names: list[str]) -> list[str]:
  """Every difference between FOLDER/ref and FOLDER/here, a line each."""
  found = []
  orders = [np.load(folder / side / 'order.npy') for side in ('ref', 'here')]
  if not np.array_equal(*orders):
    found.append('the order of the data differs')
  for name in names:
    old, new = (folder / side / name.replace(':', '-') for side in ('ref', 'here'))
    lines = [*_differing_numbers(old, new), *_differing_arrays(old, new)]
    if name != 'vae':
      lines += _differing_samples(old, new)
    for side, workdir in (('REF', old), ('here', new)):
      lines += _differing_resumed(side, workdir)
    found += [f'{name}: {line}' for line in lines]
  return found


def _differing_numbers(old: Path, new: Path) -> Iterator[str]:
  wanted = {}
  for (kind, step, name), value in logged(old).items():
    renamed = HOLDOUT_METRICS.get(name, name) if kind == 'held out' else name
    wanted[kind, step, renamed] = value
  got = logged(new)
  for kind, name in sorted({(kind, name) for kind, _, name in wanted}):
    steps = sorted(s for k, s, n in wanted if (k, n) == (kind, name))
    wrong = [s for s in steps if got.get((kind, s, name)) != wanted[kind, s, name]]
    if wrong:
      first = (kind, wrong[0], name)
      yield (
        f'{kind} {name} differs at {len(wrong)} of {len(steps)} steps, first at {wrong[0]}: '
        f'{wanted[first]} in REF, {got.get(first)} here'
      )


def _differing_arrays(old: Path, new: Path) -> Iterator[str]:
  step = max(steps_of(old))
  if max(steps_of(new)) != step:
    yield f'the last checkpoint is of step {step} in REF, {max(steps_of(new))} here'
    return
  got = arrays_of(new, step)
  wanted = as_here(arrays_of(old, step), {path: array.shape for path, array in got.items()})
  if set(wanted) != set(got):
    yield f'arrays only in REF: {sorted(set(wanted) - set(got))[:5]}'
    yield f'arrays only here: {sorted(set(got) - set(wanted))[:5]}'
  both = sorted(set(wanted) & set(got))
  for field in sorted({path.split('/')[0] for path in both}):
    inside = [path for path in both if path.split('/')[0] == field]
    wrong = [path for path in inside if not _same(wanted[path], got[path])]
    if wrong:
      yield (
        f'{len(wrong)} of {len(inside)} arrays of {field} differ at step {step}, first {wrong[0]} '
        f'({_distance(wanted[wrong[0]], got[wrong[0]])})'
      )


def _differing_samples(old: Path, new: Path) -> Iterator[str]:
  wanted, got = samples_of(old), samples_of(new)
  for kind in wanted:
    if not _same(wanted[kind], got[kind]):
      yield f'samples: {kind} differ ({_distance(wanted[kind], got[kind])})'
  before, after = metrics_of(old), metrics_of(new)
  for name in before:
    if before[name] != after.get(name):
      yield f'evaluation: {name} is {before[name]} in REF, {after.get(name)} here'


def _differing_resumed(side: str, workdir: Path) -> Iterator[str]:
  step, resumed = max(steps_of(workdir)), workdir.with_name(f'{workdir.name}-resumed')
  whole, again = arrays_of(workdir, step), arrays_of(resumed, step)
  wrong = [path for path in whole if not _same(whole[path], again[path])]
  if wrong:
    yield (
      f'{side}: a resumed run ends otherwise than an uninterrupted one: {len(wrong)} of {len(whole)} '
      f'arrays, first {wrong[0]} ({_distance(whole[wrong[0]], again[wrong[0]])})'
    )


def _same(a: np.ndarray, b: np.ndarray) -> bool:
  return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _distance(a: np.ndarray, b: np.ndarray) -> str:
  if a.shape != b.shape or a.dtype != b.dtype:
    return f'{a.dtype} {a.shape} in REF, {b.dtype} {b.shape} here'
  return f'largest difference {np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))):.3g}'
