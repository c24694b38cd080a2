"""Measures reading and preparing data: batches delivered to the step, and photographs prepared."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from diffusion_jax.benchmarks import timing
from diffusion_jax.benchmarks.timing import Speeds, seconds
from diffusion_jax.config.options import option
from diffusion_jax.data import foreign_batches
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import cores, prepare
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting.tables import table
from diffusion_jax.runtime import mesh, packages

SLOW_BATCHES = 40  # At most, a measurement of readers that decode.
WARM_UP = 4  # Batches before each measurement.
PHOTO_SIDE = 512  # About that of ImageNet's files.


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Images/s of reading and of preparing."""

  on_data: ClassVar = True
  in_one_process: ClassVar = True
  experiment: Experiment
  repeats: int
  batches: int = option(100, 'Batches per measurement of reading.')
  batch_size: int = option(256, 'Images per batch.')
  num_files: int = option(
    2000, 'Images to write and read again, as a folder of files and as TFDS data sets.'
  )
  num_photos: int = option(
    4000, 'Photographs of about 512 px to prepare, by --mode=prepare and by a plain loop.'
  )

  def measure(self, folder: Path) -> dict[str, Speeds]:
    """Measures both parts in `folder`, for temporary files. Raises: InputError without TFDS."""
    packages.require(
      'tensorflow_datasets', 'tf', "config.bench.name: 'data', which measures TFDS too,"
    )
    return {'data': data_speeds(self, folder), 'preparation': preparation_speeds(self, folder)}

  def report(self, results: Mapping[str, Speeds]) -> str:
    """Makes both tables."""
    experiment = self.experiment
    size = 'x'.join(map(str, experiment.image_shape))
    gib = experiment.meta['images_bytes'] / 2**30
    titles = {
      'data': f'batches of {self.batch_size} images {size} delivered to the step (random order; '
      f'prepared set of {gib:.2f} GiB, the others {self.num_files:,} images)',
      'preparation': f'{self.num_photos:,} JPEG files of about {PHOTO_SIDE} px to {size}',
    }
    parts = [f'\n{os.uname().machine}, {cores()} cores, {jax.devices()[0].device_kind}']
    for part, speeds in results.items():
      rows = timing.rows(speeds, ',.0f')
      parts.append(f'\n{titles[part]}\n\n{table(["reader", "images/s", "range"], rows)}')
    return '\n'.join(parts) + '\n'


def data_speeds(bench: Data, folder: Path) -> Speeds:
  """Measures images/s of every reader, a number a repeat, the readers in turns."""
  experiment = bench.experiment
  source = experiment.datasets.images('train')
  print(f'writing {bench.num_files:,} images as files and as TFDS data sets', flush=True)
  paths = foreign_batches.write_folder(source, folder / 'files', bench.num_files)
  stream = foreign_batches.write_tfds(paths, folder, 'tfrecord')
  by_number = foreign_batches.write_tfds(paths, folder, 'array_record')
  size = bench.batch_size
  packed = functools.partial(
    train_batches,
    source,
    seed=0,
    batch_size=size,
    start_step=0,
    stop_step=bench.batches + WARM_UP,
    loader=experiment.config.data.loader,
  )
  slow, by_random = min(bench.batches, SLOW_BATCHES), foreign_batches.tfds_random_access_batches
  readers = {
    'prepared data': (packed, bench.batches),
    'folder of JPEG files, tf.data': (lambda: foreign_batches.folder_batches(paths, size), slow),
    'TFDS, shuffled stream': (lambda: foreign_batches.tfds_batches(stream, size), slow),
    'TFDS, random access': (lambda: by_random(by_number, size), slow),
  }
  consume = make_consumer(experiment)
  speeds: Speeds = {name: [] for name in readers}
  for number in range(bench.repeats):
    print(f'reading, repeat {number + 1} of {bench.repeats}', flush=True)
    for name, (start, count) in readers.items():
      batches = start()  # Anew, so that no reader works ahead while another is measured.
      deliver(batches, WARM_UP, consume)
      speeds[name].append(count * size / seconds(lambda b=batches, c=count: deliver(b, c, consume)))
      del batches
  return speeds


def make_consumer(experiment: Experiment) -> Callable:
  """Makes a step that touches every image and does nothing with it."""
  sharding = mesh.batch_sharding(experiment.mesh)
  touch = jax.jit(lambda batch: batch['image'][:, 0, 0, 0].sum() + batch['label'].sum())

  def consume(batch: Mapping[str, Any]) -> jax.Array:
    wanted = {name: np.asarray(batch[name]) for name in ('image', 'label')}
    return touch(mesh.to_devices(wanted, sharding))

  return consume


def deliver(batches: Iterator, count: int, consume: Callable) -> None:
  """Delivers `count` batches to the step, one in flight, as in training."""
  pending = None
  for batch in itertools.islice(batches, count):
    arrived = consume(batch)
    if pending is not None:
      pending.block_until_ready()
    pending = arrived
  pending.block_until_ready()


def preparation_speeds(bench: Data, folder: Path) -> Speeds:
  """Measures images/s from photographs of ImageNet's size on disk, by prepare and by a plain loop."""
  experiment = bench.experiment
  data = experiment.config.data
  scale = max(1, PHOTO_SIDE // data.image_size)
  print(f'writing {bench.num_photos:,} photographs', flush=True)
  photos = folder / 'photos'
  paths = foreign_batches.write_folder(
    experiment.datasets.images('train'), photos, bench.num_photos, scale
  )
  recipe = Recipe('bench', data.image_size, 3, 'all', 'sorted', 0, 0)

  def ours(count, number):
    target = folder / f'prepared-{count}-{number}'
    prepare(str(photos), recipe, target, max_bad_fraction=0, workers=count)

  runs = {'plain loop, one process': lambda _: foreign_batches.plain_pil(paths, data.image_size)}
  for count in sorted({1, cores()}):
    title = f'--mode=prepare, {count} process{"es" * (count > 1)}'
    runs[title] = functools.partial(ours, count)
  speeds: Speeds = {name: [] for name in runs}
  for number in range(bench.repeats):
    print(f'preparing, repeat {number + 1} of {bench.repeats}', flush=True)
    for name, once in runs.items():
      speeds[name].append(bench.num_photos / seconds(lambda once=once, n=number: once(n)))
  return speeds
