"""--mode=bench: measured speeds, side by side in one run, each the median of repeats.

So far of the data: batches delivered to the step, and preparation.
"""

import datetime
import functools
import itertools
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.data import foreign_batches
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import cores, prepare
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting.tables import table
from diffusion_jax.runtime import mesh
from diffusion_jax.runtime.sample_set import write_json
from diffusion_jax.stages import prepare as prepare_stage

SLOW_BATCHES = 40  # At most, a measurement of readers that decode.
WARM_UP = 4  # Batches before each measurement.
PHOTO_SIDE = 512  # About that of ImageNet's files.


def run(experiment: Experiment, workdir: Path) -> None:
  """Measures, prints two tables and writes DIR/bench.json."""
  check_devices(experiment)
  prepare_stage.ensure_images(experiment, workdir)
  with tempfile.TemporaryDirectory(dir=workdir, prefix='.bench-') as folder:
    results = {
      'data': data_speeds(experiment, Path(folder)),
      'preparation': preparation_speeds(experiment, Path(folder)),
    }
  settings = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'machine': platform.machine(),
    'cores': cores(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
    'bench': dict(experiment.mapping['bench']),
    'data': experiment.meta['fingerprint'],
    'data_bytes': experiment.meta['images_bytes'],
  }
  write_json(workdir / 'bench.json', {**settings, **results})
  print(report(experiment, results))
  print(f'written to {workdir / "bench.json"}')


def data_speeds(experiment: Experiment, folder: Path) -> dict[str, list[float]]:
  """Images/s of every reader, a number a repeat, the readers in turns."""
  bench, source = experiment.config.bench, experiment.datasets.images('train')
  print(f'writing {bench.num_files:,} images as files and as TFDS data sets', flush=True)
  paths = foreign_batches.write_folder(source, folder / 'files', bench.num_files)
  stream = foreign_batches.write_tfds(paths, folder, 'tfrecord')
  by_number = foreign_batches.write_tfds(paths, folder, 'array_record')
  size = bench.batch_size
  packed = functools.partial(
    train_batches, source, seed=0, batch_size=size, start_step=0, stop_step=bench.batches + WARM_UP
  )
  slow = min(bench.batches, SLOW_BATCHES)
  readers = {
    'prepared data': (packed, bench.batches),
    'folder of JPEG files, tf.data': (lambda: foreign_batches.folder_batches(paths, size), slow),
    'TFDS, shuffled stream': (lambda: foreign_batches.tfds_batches(stream, size), slow),
    'TFDS, random access': (
      lambda: foreign_batches.tfds_random_access_batches(by_number, size),
      slow,
    ),
  }
  consume = make_consumer(experiment)
  speeds: dict[str, list[float]] = {name: [] for name in readers}
  for number in range(bench.repeats):
    print(f'reading, repeat {number + 1} of {bench.repeats}', flush=True)
    for name, (start, count) in readers.items():
      batches = start()  # Anew, so that no reader works ahead while another is measured.
      deliver(batches, WARM_UP, consume)
      speeds[name].append(count * size / seconds(lambda b=batches, c=count: deliver(b, c, consume)))
      del batches
  return speeds


def make_consumer(experiment: Experiment) -> Callable:
  """A step that touches every image and does nothing with it."""
  sharding = mesh.batch_sharding(experiment.mesh)
  touch = jax.jit(lambda batch: batch['image'][:, 0, 0, 0].sum() + batch['label'].sum())

  def consume(batch: Mapping[str, Any]) -> jax.Array:
    wanted = {name: np.asarray(batch[name]) for name in ('image', 'label')}
    return touch(mesh.to_devices(wanted, sharding))

  return consume


def deliver(batches: Iterator, count: int, consume: Callable) -> None:
  """`count` batches to the step, one in flight, as in training."""
  pending = None
  for batch in itertools.islice(batches, count):
    arrived = consume(batch)
    if pending is not None:
      pending.block_until_ready()
    pending = arrived
  pending.block_until_ready()


def preparation_speeds(experiment: Experiment, folder: Path) -> dict[str, list[float]]:
  """Images/s from photographs of ImageNet's size on disk, by prepare and by a plain loop."""
  data, bench = experiment.config.data, experiment.config.bench
  scale = max(1, PHOTO_SIDE // data.image_size)
  print(f'writing {bench.num_photos:,} photographs', flush=True)
  photos = folder / 'photos'
  paths = foreign_batches.write_folder(
    experiment.datasets.images('train'), photos, bench.num_photos, scale
  )
  recipe = Recipe('bench', data.image_size, 3, 'all', 'sorted', 0, 0)
  one = {
    'plain loop, one process': lambda number: foreign_batches.plain_pil(paths, data.image_size)
  }
  runs = one | {
    f'--mode=prepare, {count} process{"es" * (count > 1)}': (
      lambda number, count=count: prepare(
        str(photos),
        recipe,
        folder / f'prepared-{count}-{number}',
        max_bad_fraction=0,
        workers=count,
      )
    )
    for count in sorted({1, cores()})
  }
  speeds: dict[str, list[float]] = {name: [] for name in runs}
  for number in range(bench.repeats):
    print(f'preparing, repeat {number + 1} of {bench.repeats}', flush=True)
    for name, once in runs.items():
      speeds[name].append(bench.num_photos / seconds(lambda once=once, n=number: once(n)))
  return speeds


def seconds(run: Callable[[], Any]) -> float:
  """Wall-clock time of one call."""
  began = time.perf_counter()
  run()
  return time.perf_counter() - began


def report(experiment: Experiment, results: Mapping[str, Mapping[str, list[float]]]) -> str:
  """Both tables."""
  size = 'x'.join(map(str, experiment.image_shape))
  gib = experiment.meta['images_bytes'] / 2**30
  titles = {
    'data': f'batches of {experiment.config.bench.batch_size} images {size} delivered to the step '
    f'(random order; prepared set of {gib:.2f} GiB, the others {experiment.config.bench.num_files:,} images)',
    'preparation': f'{experiment.config.bench.num_photos:,} JPEG files of about {PHOTO_SIDE} px to {size}',
  }
  parts = [f'\n{os.uname().machine}, {cores()} cores, {jax.devices()[0].device_kind}']
  for part, speeds in results.items():
    rows = [
      [name, f'{np.median(s):,.0f}', f'{min(s):,.0f} .. {max(s):,.0f}']
      for name, s in speeds.items()
    ]
    parts.append(f'\n{titles[part]}\n\n{table(["reader", "images/s", "range"], rows)}')
  return '\n'.join(parts) + '\n'
