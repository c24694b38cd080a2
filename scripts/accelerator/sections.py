"""The sections of the report on the goals and on the training."""

from collections.abc import Mapping, Sequence
from typing import Any

from accelerator import goals
from accelerator.cells import number, one_line, peak_of, share, table

NOTHING = '–'
HEADER = ('', 'batch', 'images/s', 'MFU', 'goal, aim', 'goal is', 'torch.compile, images/s')
HEADER += ('ours beside it', f'at least {goals.LEAST_SHARE:g}x is', 'compile s', 'peak GiB')


def goals_section(record: Mapping[str, Any]) -> list[str]:
  """A row for each speed that is wanted."""
  rows, versions, notes = [], set(), []
  peak = peak_of(record['machine']['device'])
  for name, goal in goals.GOALS.items():
    piece = record['pieces'].get(f'goal.{name}')
    if piece is None:
      continue
    wanted = ', '.join(number(x) for x in (goal.least, goal.aim) if x)
    if 'error' in piece:
      rows.append([goal.title, f'error: {one_line(piece["error"])}', '', '', wanted, *[''] * 6])
      continue
    result = piece['result']
    torch, speed = result['torch'], result['images_per_s']
    beside = [NOTHING] * 3
    if 'images_per_s' in torch:
      ratio = speed / torch['images_per_s']
      beside = [number(torch['images_per_s']), f'{ratio:.2f}x']
      reached = goals.verdict(ratio, goals.LEAST_SHARE, goals.AIMED_SHARE)
      beside.append(reached if record['size'] == 'full' else NOTHING)
      versions.add(torch['version'])
    elif goal.part in goals.TORCH_PARTS:
      notes.append(f'{goal.title}: PyTorch was not measured, {one_line(torch["skipped"])}.')
    on_it = goals.DEVICE in record['machine']['device'] and record['size'] == 'full'
    rows.append(
      [
        goal.title,
        str(result['batch_size']),
        number(speed),
        NOTHING if goal.part == 'features' else share(result['flops_per_s'], peak),
        wanted,
        goals.verdict(speed, goal.least, goal.aim) if on_it else NOTHING,
        *beside,
        number(result['compile_s']),
        number(result['peak_bytes'], 2**30),
      ]
    )
  if not rows:
    return []
  beside = f' PyTorch {", ".join(sorted(versions))}.' if versions else ''
  return [
    '## Wanted speeds',
    '',
    'Images/s of one device, as `--mode=bench` times them; the goals are those of one '
    f'{goals.DEVICE}. torch.compile ran the same network on the same weights and batches, in turns with '
    f'ours: at least {goals.LEAST_SHARE:g}x of its speed is wanted, the aim is {goals.AIMED_SHARE:g}x. '
    'Activations are bfloat16 in both on a GPU. The UNet has no dropout and recomputes nothing. Medians of '
    f'{goals.REPEATS} after compilation and first runs; a measurement ends when the device is done.{beside}',
    '',
    table(HEADER, rows),
    '',
    *[f'- {note}' for note in dict.fromkeys(notes)],
    *([''] if notes else []),
  ]


def cifar_section(record: Mapping[str, Any]) -> list[str]:
  """What the training on CIFAR-10 reached."""
  pieces = {
    name.removeprefix('cifar.'): piece
    for name, piece in record['pieces'].items()
    if name.startswith('cifar.')
  }
  if not pieces:
    return []
  lines = ['## Training on CIFAR-10', '']
  for name, piece in pieces.items():
    if 'error' in piece:
      lines.append(f'- **{name} failed**: {one_line(piece["error"])}')
  results = {name: piece['result'] for name, piece in pieces.items() if 'result' in piece}
  if data := results.get('prepare'):
    lines.append(
      f'- {data["num_train"]:,} images to train on and {data["num_holdout"]:,} held out, prepared in '
      f'{data["seconds"]["prepare"]:.0f} s; the classifier whose features are compared took '
      f'{data["seconds"]["reference"]:.0f} s'
    )
  if trained := results.get('train'):
    lines += training_lines(trained)
  if found := results.get('evaluate'):
    lines += distance_lines(found['rows'])
  pictures = record.get('pictures', [])
  lines += [f'![{name}]({name})' for name in pictures]
  return [*lines, *([''] if pictures else [])]


def training_lines(result: Mapping[str, Any]) -> list[str]:
  """Speed and curves."""
  if not result['batch_size']:
    return ['- no step was logged yet', '']
  model = result['config']
  lines = [
    f'- {model}; batch {result["batch_size"]}, learning rate constant after the warm-up',
    f'- {result["steps"]:,} steps, {result["trained_seconds"] / 60:.1f} of {result["minutes"]:g} minutes: '
    f'{number(result["images_per_s"])} images/s, MFU {100 * result["mfu"]:.1f}%, '
    f'{100 * result["data_wait"]:.1f}% of the time waiting for data',
    *(
      [f'- **{result["skipped"]} lines of the log have skipped steps**']
      if result['skipped']
      else []
    ),
    '',
  ]
  curves = {'loss': result['loss'], 'held-out loss': result['holdout_loss'], **result['distances']}
  curves = {name: dict(points) for name, points in curves.items() if points}
  steps = sorted({step for points in curves.values() for step in points})
  rows = [[f'{s:,}', *(number(points.get(s)) for points in curves.values())] for s in steps]
  return [*lines, table(('step', *curves), rows), '']


def distance_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Samples beside real images."""
  names = [name for name in rows[0]['metrics'] if not name.endswith('_std')]
  cells = [
    [
      f'samples, guidance {row["cfg_scale"]:g}',
      f'{row["num_samples"]:,}',
      *(number(row['metrics'][name]) for name in names),
      number(row['images_per_s']),
    ]
    for row in rows
  ]
  if real := rows[0]['real_baseline']:
    values = [number(real['metrics'].get(name)) for name in names]
    cells.append(['real training images', f'{real["num_images"]:,}', *values, NOTHING])
  notes = ', '.join(
    f'{k.replace("_", " ")} {number(v)}' for k, v in rows[0]['features_notes'].items()
  )
  warnings = list(dict.fromkeys(warning for row in rows for warning in row['warnings']))
  return [
    f'Samples of step {rows[0]["step"]:,} against the held-out images, in the features of a classifier '
    f'trained on the data set ({notes}), so that these are no published FIDs:',
    '',
    table(('', 'images', *(name.replace('_', ' ') for name in names), 'images/s'), cells),
    '',
    *[f'- warning: {warning}' for warning in warnings],
    *([''] if warnings else []),
  ]
