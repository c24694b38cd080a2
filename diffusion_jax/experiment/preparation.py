"""Prepares the data of a config: one set from images in any form and, for latent systems, latents."""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import latents, packed, sets
from diffusion_jax.data.prepare import prepare
from diffusion_jax.diffusion.pixels import from_uint8, psnr, to_uint8
from diffusion_jax.errors import InputError, listed
from diffusion_jax.experiment import agreement, stored
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.models.latents import in_batches
from diffusion_jax.reporting import images
from diffusion_jax.reporting.tables import quantity, table
from diffusion_jax.runtime import files, hosts, mesh
from diffusion_jax.types import Array

MAX_CELLS = 100  # Images in data.png.
NUM_RECONSTRUCTED = 64
PAIRS, SHOWN = 5, 20  # A row, and in all of latents.png.
LISTED = 10  # Bad files printed; data.json lists all of them.


def prepare_images(experiment: Experiment, workdir: Path) -> None:
  """Prepares the set of config.data, each process a share of it."""
  data, datasets = experiment.config.data, experiment.datasets
  rebuilt = hosts.from_first(lambda: rebuild_descriptions(datasets.folder, workdir))
  if rebuilt and not data.source:
    folder, meta = rebuilt[0]
  else:
    options = {'max_bad_fraction': data.max_bad_fraction, 'workers': data.workers}
    options['num_classes'] = experiment.config.num_classes
    folder, meta = prepare(data.source, datasets.recipe, datasets.folder, **options)
  hosts.from_first(lambda: tell_images(Path(folder), meta, workdir))


def rebuild_descriptions(folder: Path, workdir: Path) -> list[tuple[str, Mapping[str, Any]]]:
  """Rewrites a damaged or missing meta.json of the set that DIR/data.json describes.

  A damaged file is kept as meta.json.damaged. Returns: the sets that could be rebuilt.
  """
  rebuilt = []
  for path in sets.damaged(folder):
    described = stored.load_meta(workdir, path.name.rsplit('-', 1)[-1])
    meta = described and packed.rebuilt_meta(path, described)
    if meta:
      with contextlib.suppress(FileNotFoundError):
        os.replace(path / 'meta.json', path / 'meta.json.damaged')
      packed.write_meta(path, meta)
      print(
        f'{path / "meta.json"} was damaged or missing: rebuilt from {workdir / stored.META_FILE}; '
        f'the images, labels and names have the fingerprint {meta["fingerprint"]}'
      )
      rebuilt.append((str(path), meta))
  return rebuilt


def tell_images(folder: Path, meta: Mapping[str, Any], workdir: Path) -> None:
  """Describes the set on the screen and in DIR/data.json and DIR/data.png."""
  print(summary(meta))
  trained_on = ''
  if stored.has_checkpoint(workdir):
    trained_on = stored.load(workdir).get('data', {}).get('fingerprint', '')
  if trained_on not in ('', meta['fingerprint']):
    print(f'done: {folder}; {workdir} was trained on other data and keeps their description')
    return
  workdir.mkdir(parents=True, exist_ok=True)
  stored.save_meta(workdir, meta)
  files.write_png(workdir / 'data.png', picture(folder, meta))
  print(f'done: {folder}; a picture of it in {workdir / "data.png"}, the details in data.json')


def ensure(experiment: Experiment, workdir: Path) -> None:
  """Prepares the data of a run if necessary, on all processes. Raises: InputError if that is impossible."""
  ensure_images(experiment, workdir)
  if not experiment.is_latent:
    return
  folder, _ = experiment.datasets.prepared
  if not hosts.from_first(lambda: latents.existing(folder)):
    hosts.say(f'no latents of {folder} yet: encoding them first')
    prepare_latents(experiment, workdir)
  agreement.require_same_latents(experiment)


def ensure_images(experiment: Experiment, workdir: Path) -> None:
  """Prepares the images if necessary; otherwise prints what they were prepared from."""
  others = hosts.from_first(lambda: _missing(experiment))
  if others is not None:
    try:
      prepare_images(experiment, workdir)
    except InputError as error:
      error.args = (f'{others}\n{error}' if others else str(error),)
      raise
  agreement.require_same_images(experiment.datasets)


def _missing(experiment: Experiment) -> str | None:
  """Returns None unless images have to be prepared; otherwise what is there instead, or ''."""
  data, datasets = experiment.config.data, experiment.datasets
  if data.fingerprint or not data.source:
    return None
  is_there = '/' not in data.source or Path(data.source).expanduser().exists()
  if datasets.from_source() or (datasets.is_prepared() and not is_there):
    folder, meta = datasets.prepared
    print(f'data: {folder}, prepared from {", ".join(sorted(sets.sources(meta)))}')
    return None
  others = sets.what_is_there(datasets.folder, datasets.recipe.mapping())
  print(others or f'no prepared data in {datasets.folder} yet')
  print(f'preparing them from {data.source} first', flush=True)
  return others


def prepare_latents(experiment: Experiment, workdir: Path) -> None:
  """Encodes the prepared set with config.vae.checkpoint, each process a share; draws DIR/latents.png."""
  config, first = experiment.config, experiment.first_stage
  agreement.require_same_images(experiment.datasets)
  folder, meta = experiment.datasets.prepared

  def find():
    made = latents.usable(folder, meta, first.fingerprint, mirrored=config.data.flip)
    if made:
      latents.verify(folder, meta, made, full=True)
      print(f'{latents.folder_of(folder, made)}: complete already')
    else:
      packed.verify(folder, meta, full=config.data.verify == 'full')
    return made

  made = hosts.from_first(find)
  if not made:
    encode, shape = compile_encode(experiment), experiment.x0_shape
    by = {'fingerprint': first.fingerprint, 'origin': first.origin}
    size = config.vae.batch_size * jax.local_device_count()
    options = {'batch_size': size, 'mirrored': config.data.flip}
    made = latents.encode(folder, meta, by, shape, encode, **options)
  hosts.from_first(lambda: tell_latents(experiment, folder, meta, made, workdir))


def tell_latents(
  experiment: Experiment,
  folder: Path,
  meta: Mapping[str, Any],
  made: Mapping[str, Any],
  workdir: Path,
) -> None:
  """Describes the latents on the screen and in DIR/latents.png."""
  quality, drawn = reconstructions(experiment, folder, meta, made)
  files.write_png(workdir / 'latents.png', drawn)
  statistics, by = made['statistics'], made['autoencoder']
  print(
    f'latents: {"x".join(map(str, made["latent_shape"]))} of {meta["num_train"]:,} training images'
    f'{" and the same mirrored" if made["mirrored"] else ""}, {meta["num_holdout"]:,} held out; '
    f'{quantity(made["posterior_bytes"], "B")}\n'
    f'  by {by["fingerprint"]} ({by["origin"]})\n'
    f'  mean {" ".join(f"{m:.4f}" for m in statistics["mean"])}, standard deviation '
    f'{statistics["std"]:.4f}: scale {1 / statistics["std"]:.5f}\n'
    f'  held-out images decoded from them: PSNR {quality:.2f} dB\n'
    f'done: {latents.folder_of(folder, made)}; pairs of image and reconstruction in '
    f'{workdir / "latents.png"}'
  )


def compile_encode(experiment: Experiment) -> Callable[[np.ndarray], Array]:
  """Compiles images (B, H, W, C) uint8 -> posterior parameters (B, h, w, 2 c) float32.

  Runs on the devices of this process alone, which divide B. Returns before it has run.
  """
  first, here = experiment.first_stage, mesh.local_mesh()
  params = {name: first.params[name] for name in ('encoder', 'quant_conv')}
  params = mesh.to_devices(params, mesh.replicated(here))

  @jax.jit
  def encode(params, pixels):
    posterior = first.module.apply({'params': params}, from_uint8(pixels), method='encode')
    return jnp.concatenate(posterior, axis=-1)

  return lambda batch: encode(params, mesh.to_devices(batch, mesh.batch_sharding(here)))


def reconstructions(
  experiment: Experiment, folder: Path, meta: Mapping[str, Any], made: Mapping[str, Any]
) -> tuple[float, np.ndarray]:
  """Decodes held-out images from their stored means on the devices of this process alone.

  Returns: mean PSNR in dB, a picture of pairs.
  """
  split = 'holdout' if meta['num_holdout'] else 'train'
  source = packed.open_split(folder, meta, split)
  stored_latents = latents.open_split(folder, meta, made, split, mirrored=False)
  count = min(NUM_RECONSTRUCTED, source.num_examples)
  chosen = np.linspace(0, source.num_examples - 1, count).round().astype(int)
  real, posterior = source.read(chosen)['image'], stored_latents.read(chosen)['posterior']
  means = posterior[..., : posterior.shape[-1] // 2].astype(np.float32)
  here, module = mesh.local_mesh(), experiment.autoencoder
  params = {name: experiment.first_stage.params[name] for name in ('decoder', 'post_quant_conv')}

  @jax.jit
  def decode(params, z):
    def images_of(z):
      return to_uint8(module.apply({'params': params}, z, method='decode'))

    size, shards = experiment.config.vae.batch_size, mesh.batch_shards(here)
    return in_batches(images_of, z, batch_size=size, shards=shards)

  padding = [(0, mesh.round_up(count, here) - count)] + [(0, 0)] * 3
  placed = mesh.to_devices(np.pad(means, padding), mesh.batch_sharding(here))
  decoded = decode(mesh.to_devices(params, mesh.replicated(here)), placed)
  decoded = jax.device_get(decoded)[:count]
  error = (decoded.astype(np.float32) - real) / 127.5
  return float(psnr(error).mean()), images.pairs(real[:SHOWN], decoded[:SHOWN], PAIRS)


def summary(meta: Mapping[str, Any]) -> str:
  """Describes the set in a few lines and a table."""
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
    *enlarged(meta),
    _files('bad files, each replaced by the next image of its class', meta['bad_files']),
    _files('files used although their names are wrong', meta['mislabelled_files']),
    *(f'note: {note}' for note in meta['notes']),
  ]
  return '\n'.join(lines)


def enlarged(meta: Mapping[str, Any]) -> list[str]:
  """Reports images smaller than those of the set, if there are any."""
  count, total = meta.get('num_enlarged', 0), meta['num_train'] + meta['num_holdout']
  if not count:
    return []
  side = meta['image_shape'][0]
  return [
    f'enlarged: {count:,} of {total:,} images have a short side below {side} px, and enlarging blurs '
    'them; a smaller --config.data.image_size enlarges fewer'
  ]


def _files(title: str, files: list[dict[str, str]]) -> str:
  lines = [f'  {item["file"]}: {item["reason"]}' for item in files]
  return listed([f'{title}: {len(files)}', *lines], LISTED + 1)


def picture(folder: Path, meta: Mapping[str, Any]) -> np.ndarray:
  """Draws images spread over the classes with their names: (H', W', 3) uint8."""
  source = packed.open_split(folder, meta, 'train')
  first = np.searchsorted(source.labels, np.arange(len(source.label_names)))
  each = max(1, min(MAX_CELLS // len(first), min(meta['images_per_class']['train'])))
  chosen = first if len(first) <= MAX_CELLS else first[:: -(-len(first) // MAX_CELLS)]
  rows = (chosen[:, None] + np.arange(min(each, 10))).reshape(-1)
  batch = source.read(rows)
  return images.captioned(batch['image'], [source.label_names[y] for y in batch['label']])
