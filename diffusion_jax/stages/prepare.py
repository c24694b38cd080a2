"""--mode=prepare: images in any form -> one prepared set under config.data.dir, and what it holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.data import packed
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting import images
from diffusion_jax.reporting.tables import table

MAX_CELLS = 100  # Of the picture.
LISTED = 10  # Bad files on the screen; all of them stand in data.json.


def run(experiment: Experiment, workdir: Path) -> Mapping[str, Any]:
  """Prepares, or finds it done; writes DIR/data.json and DIR/data.png. Returns: the description."""
  data = experiment.config.data
  if not data.source:
    raise InputError(
      'config.data.source is empty; allowed a folder of images, a .tar, .tar.gz or .zip of one, the '
      "folder of ILSVRC2012's archives, a TFDS name such as 'cifar10', or 'digits'"
    )
  folder, meta = prepare(
    data.source,
    experiment.recipe,
    experiment.data_dir,
    max_bad_fraction=data.max_bad_fraction,
    workers=data.workers,
  )
  print(summary(meta))
  trained = stored.has_checkpoint(workdir)
  if trained and stored.load(workdir).get('data', {}).get('fingerprint') != meta['fingerprint']:
    print(f'done: {folder}; {workdir} was trained on other data, and keeps their description')
    return meta
  workdir.mkdir(parents=True, exist_ok=True)
  stored.save_meta(workdir, meta)
  images.save_png(workdir / 'data.png', picture(folder, meta))
  print(f'done: {folder}; a picture of it in {workdir / "data.png"}, the details in data.json')
  return meta


def ensure(experiment: Experiment, workdir: Path) -> None:
  """Prepares the data of a run if that has not been done. Raises: InputError if it cannot be."""
  data = experiment.config.data
  if data.fingerprint or not data.source:
    return
  if experiment.is_prepared():
    folder, meta = experiment.prepared
    sources = [made['source'] for made in meta['made']]
    print(f'data: {folder}, prepared from {", ".join(sources)}')
  elif jax.process_count() == 1:  # Several hosts would all prepare.
    print(f'no prepared data in {experiment.data_dir} yet: preparing them first')
    run(experiment, workdir)


def summary(meta: Mapping[str, Any]) -> str:
  """What the set holds, in a few lines and a table."""
  order, names = meta['label_list'], meta['label_names']
  rows = []
  for split in packed.SPLITS:
    counts = np.asarray(meta['images_per_class'][split])
    least, most = counts.argmin(), counts.argmax()
    ends = [f'{counts[i]:,} ({names[i]})' for i in (least, most)] if counts.any() else ['', '']
    rows.append([split, f'{counts.sum():,}', f'{(counts > 0).sum():,}', *ends])
  size = 'x'.join(map(str, meta['image_shape']))
  lines = [
    '',
    f'{meta["name"]}: {size}, resized by {meta["resize"]}; fingerprint {meta["fingerprint"]}',
    f'class list {order["name"]!r}, {len(names)} classes, labels in {order["order"]} order: '
    f'{", ".join(names[:3])}{", ..." if len(names) > 3 else ""} (digest {order["digest"]})',
    '',
    table(['split', 'images', 'classes', 'smallest class', 'largest class'], rows),
    '',
    *_listed('bad files, each shown by the next image of its class', meta['bad_files']),
    *_listed('files used although their names are wrong', meta['mislabelled_files']),
    *(f'note: {note}' for note in meta['notes']),
  ]
  return '\n'.join(lines)


def _listed(title: str, files: list[dict[str, str]]) -> list[str]:
  lines = [f'  {item["file"]}: {item["reason"]}' for item in files[:LISTED]]
  more = [f'  and {len(files) - LISTED} more'] if len(files) > LISTED else []
  return [f'{title}: {len(files)}', *lines, *more]


def picture(folder: Path, meta: Mapping[str, Any]) -> np.ndarray:
  """Images spread over the classes with their names: (H', W', 3) uint8."""
  source = packed.open_split(folder, meta, 'train')
  first = np.searchsorted(source.labels, np.arange(len(source.label_names)))
  each = max(1, min(MAX_CELLS // len(first), min(meta['images_per_class']['train'])))
  chosen = first if len(first) <= MAX_CELLS else first[:: -(-len(first) // MAX_CELLS)]
  rows = (chosen[:, None] + np.arange(min(each, 10))).reshape(-1)
  batch = source.read(rows)
  return images.captioned(batch['image'], [source.label_names[y] for y in batch['label']])
