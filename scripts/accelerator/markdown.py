"""The report as Markdown."""

from typing import Any

from accelerator.cells import number, one_line, peak_of, share, table
from accelerator.sections import cifar_section, goals_section


def failures(record: dict[str, Any]) -> list[str]:
  """Pieces with an error, and checks that did not pass."""
  found = []
  for name, piece in record['pieces'].items():
    if 'error' in piece:
      found.append(name)
    elif name.startswith('check.'):
      found += [f'{name}: {row["name"]}' for row in piece['result'] if row['passed'] is False]
  return found


def check_rows(name: str, piece: dict[str, Any]) -> list[list[str]]:
  """The rows of a group of checks."""
  title = name.removeprefix('check.')
  if 'error' in piece:
    return [[title, one_line(piece['error']), '', '', '**error**']]
  verdicts = {True: 'pass', False: '**fail**', None: '–'}
  rows = []
  for row in piece['result']:
    what = row['name'] + (f' ({row["note"]})' if row['note'] else '')
    values = [number(row['value']), number(row['tolerance'])]
    rows.append([title, what, *values, verdicts[row['passed']]])
  return rows


def speed_rows(record: dict[str, Any], prefix: str) -> list[list[str]]:
  """One row a measurement."""
  peak = peak_of(record['machine']['device'])
  measured = record['pieces'].get('time.matmul', {}).get('result', {}).get('flops_per_s')
  rows = []
  for name, piece in record['pieces'].items():
    if not name.startswith(prefix):
      continue
    title, result = name.removeprefix(prefix), piece.get('result', {})
    if 'error' in piece or 'skipped' in result:
      why = result.get('skipped') or f'error: {one_line(piece["error"])}'
      rows.append([title, why, *[''] * 9])
      continue
    speed = result['flops_per_s']
    rows.append(
      [
        title,
        str(result['batch_size']),
        number(result['images_per_s']),
        number(result['batch_size'] / result['images_per_s'], 1e-3),
        number(result['flops_per_image'], 1e9),
        number(speed, 1e12),
        share(speed, peak),
        share(speed, measured),
        number(result['compile_s']),
        number(result['program_bytes'], 2**30),
        number(result['peak_bytes'], 2**30),
      ]
    )
  return rows


def report(record: dict[str, Any]) -> str:
  """The whole page."""
  machine, pieces = record['machine'], record['pieces']
  versions = ('python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
  dates = sorted(piece['date'] for piece in pieces.values()) or ['–']
  failed = failures(record)
  matmul = pieces.get('time.matmul', {}).get('result', {})
  peak = peak_of(machine['device'])
  ceiling = f'{number(peak, 1e12)} TFLOP/s dense bfloat16 on paper' if peak else 'unknown on paper'
  if matmul:
    speed, n = number(matmul['flops_per_s'], 1e12), matmul['side']
    ceiling += f'; {speed} measured here ({n}x{n} {matmul["dtype"]} matrix product, random numbers)'
  memory = machine['memory_bytes']
  lines = [
    f'# {machine["device"]}',
    '',
    *(['**Tiny sizes: they try the script, and say nothing about speed.**', ''])
    * (record['size'] == 'tiny'),
    f'- Date: {dates[0]} to {dates[-1]} (UTC)',
    f'- Device: {machine["devices"]} x {machine["device"]}, backend {machine["backend"]}, '
    + (f'{number(memory, 2**30)} GiB for JAX' if memory else 'memory not counted')
    + f' ({machine["device_version"]})',
    f'- Versions: {", ".join(f"{name} {machine[name]}" for name in versions)}',
    f'- Commit: {machine["commit"] or "unknown"}',
    f'- Command: `{record["command"]}`',
    f'- Peak: {ceiling}',
    f'- {len(pieces)} pieces; ' + (f'**failed**: {"; ".join(failed)}' if failed else 'none failed'),
    '',
    *correctness_section(record),
    *goals_section(record),
    *cifar_section(record),
    *systems_section(record),
  ]
  return '\n'.join(lines)


def correctness_section(record: dict[str, Any]) -> list[str]:
  """A row for each check."""
  pieces = record['pieces']
  rows = [
    row for name in pieces if name.startswith('check.') for row in check_rows(name, pieces[name])
  ]
  if not rows:
    return []
  return [
    '## Correctness',
    '',
    'Errors are norms of differences over norms of the reference, unless the row says otherwise.',
    '',
    table(['check', 'what', 'value', 'tolerance', ''], rows),
    '',
  ]


def systems_section(record: dict[str, Any]) -> list[str]:
  """Speeds of more systems, with either kind of attention."""
  columns = ['', 'batch', 'images/s', 'ms a batch', 'GFLOP an image', 'TFLOP/s', 'MFU']
  columns += ['of measured', 'compile s', 'program GiB', 'peak GiB']
  lines, training, sampling = [], speed_rows(record, 'train.'), speed_rows(record, 'sample.')
  if training:
    lines += [
      '## Training steps',
      '',
      'Median of repeats after warm-up, random arrays, state donated, activations in '
      f'{"float32" if record["machine"]["backend"] == "cpu" else "bfloat16"}. Operations are three times '
      'those of the forward pass, counted by diffusion_jax/runtime/cost.py; recomputation is not work. MFU is '
      'the share of the peak on paper. Memory: of the compiled program, and the most that the process held.',
      '',
      table(columns, training),
      '',
    ]
  if sampling:
    lines += [
      '## Sampling',
      '',
      'DDIM, from noise to the last step, without decoding; guidance doubles the batch of the network.',
      '',
      table(columns, sampling),
      '',
    ]
  return lines
