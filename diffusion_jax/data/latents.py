"""Stores the posteriors of an autoencoder for a prepared image set, which latent systems train on.

SET/latents-FINGERPRINT/, FINGERPRINT that of the autoencoder, holds
  posterior.npy  (N, h, w, 2 c) float16, mean and log variance: of the training images, of the same
                 mirrored (if they were), of the held-out images
  meta.json      of which images by which autoencoder, their statistics, digests 16 MiB at a time
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_jax.data import packed
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import InputError, Stop
from diffusion_jax.runtime import files

DONE = 'done'  # Beside an unfinished file: how many rows are on disk.
ROWS_AT_ONCE = 4096  # When statistics are taken.
NOTE_SECONDS = 5.0  # Between notes on disk of the rows that are done.


def open_split(
  folder: Path, meta: Mapping[str, Any], made: Mapping[str, Any], split: str, *, mirrored: bool
) -> Arrays:
  """Opens split 'train' (twice as long if mirrored) or 'holdout' of verified latents.

  folder, meta: those of the image set. made: the result of find.
  """
  train, total = meta['num_train'], meta['num_train'] + meta['num_holdout']
  labels = np.load(folder / 'labels.npy')
  posterior = np.asarray(np.load(folder_of(folder, made) / 'posterior.npy', mmap_mode='r'))
  if split == 'train':
    rows, labels = train * (1 + mirrored), np.tile(labels[:train], 1 + mirrored)
    posterior = posterior[:rows]
  else:
    posterior, labels = posterior[len(posterior) - (total - train) :], labels[train:]
  fingerprint = f'{meta["fingerprint"]}-{made["autoencoder"]["fingerprint"]}-{split}'
  return Arrays(posterior, fingerprint, labels, tuple(meta['label_names']), 'posterior')


def folder_of(folder: Path, made: Mapping[str, Any]) -> Path:
  """Returns the folder of the latents inside that of the image set."""
  return folder / f'{packed.LATENTS}{made["autoencoder"]["fingerprint"]}'


def existing(folder: Path) -> list[str]:
  """Lists the fingerprints of the autoencoders that made latents of this set, whole or not."""
  folders = sorted(path for path in folder.glob(f'{packed.LATENTS}*') if path.is_dir())
  return [path.name[len(packed.LATENTS) :] for path in folders]


def _origin(folder: Path, autoencoder: str) -> str:
  try:
    return packed.read_meta(folder / f'{packed.LATENTS}{autoencoder}')['autoencoder']['origin']
  except Stop:
    return 'what is not readable'


def find(
  folder: Path, meta: Mapping[str, Any], autoencoder: str, *, mirrored: bool
) -> dict[str, Any]:
  """Reads the description of the latents that the autoencoder of this fingerprint made of the set.

  Raises: InputError that names the existing ones, if there are none; DamagedError.
  """
  there = existing(folder)
  if autoencoder not in there:
    others = [f'  {key}: made by {_origin(folder, key)}' for key in there]
    listed = ', only by others:\n' + '\n'.join(others) + '\n' if others else '; '
    raise InputError(
      f'{folder}: no latents by the autoencoder {autoencoder} of config.vae.checkpoint{listed}'
      'run the same command with --mode=prepare, or give the autoencoder that made them'
    )
  own = folder / f'{packed.LATENTS}{autoencoder}'
  made = packed.read_meta(own)
  for what, found, wanted in (
    ('by another autoencoder', made['autoencoder']['fingerprint'], autoencoder),
    ('of other images', made['images'], meta['fingerprint']),
  ):
    if found != wanted:
      raise InputError(
        f'{own}: made {what} ({found}, not {wanted}); delete it and run --mode=prepare again'
      )
  if 'posterior_bytes' not in made:
    raise InputError(f'{own}: made by an earlier version of this program; run --mode=prepare again')
  if mirrored and not made['mirrored']:
    raise InputError(
      f'{own}: made without mirrored images, which config.data.flip needs: run --mode=prepare '
      'again, or say --config.data.flip=False'
    )
  return made


def usable(
  folder: Path, meta: Mapping[str, Any], autoencoder: str, *, mirrored: bool
) -> dict[str, Any] | None:
  """Reads it as find does, but returns None where latents have to be made. Raises: DamagedError."""
  try:
    return find(folder, meta, autoencoder, mirrored=mirrored)
  except InputError:
    return None


def verify(folder: Path, meta: Mapping[str, Any], made: Mapping[str, Any], *, full: bool) -> None:
  """Verifies the latents and the labels as packed.verify does. Raises: DamagedError that names the file."""
  packed.verify_labels(folder, meta)
  own = folder_of(folder, made)
  packed.verify_file(own / 'posterior.npy', made['posterior_bytes'], made['chunk_digests'], full)


def encode(
  folder: Path,
  meta: Mapping[str, Any],
  autoencoder: Mapping[str, Any],
  latent_shape: tuple[int, int, int],
  encode_batch: Callable[[np.ndarray], np.ndarray],
  *,
  batch_size: int,
  mirrored: bool,
) -> dict[str, Any]:
  """Makes the latents of a verified image set, or goes on with them. Returns: their description.

  autoencoder: its 'fingerprint' and 'origin', noted. encode_batch: (batch_size, H, W, C) uint8 ->
  (batch_size, h, w, 2 c) float32.
  Raises: InputError for a full disk, or an autoencoder whose output is not finite.
  """
  work = folder / f'.encoding-{autoencoder["fingerprint"]}-{"mirrored" if mirrored else "plain"}'
  images = np.asarray(np.load(folder / 'images.npy', mmap_mode='r'))
  train = meta['num_train']
  parts = [images[:train], images[:train, :, ::-1], images[train:]]
  parts = parts if mirrored else [parts[0], parts[2]]
  height, width, channels = latent_shape
  shape = (sum(map(len, parts)), height, width, 2 * channels)
  with files.building(work, 2 * math.prod(shape)):
    path = work / 'posterior.npy'
    posterior = files.reserved_array(path, shape, np.float16, DONE)
    _fill(posterior, path.with_name(DONE), parts, encode_batch, batch_size)
    made = {
      'version': packed.VERSION,
      'images': meta['fingerprint'],
      'autoencoder': dict(autoencoder),
      'mirrored': mirrored,
      'latent_shape': list(latent_shape),
      'statistics': statistics(posterior[: train * (1 + mirrored)]),
      'posterior_bytes': path.stat().st_size,
      'chunk_digests': packed.chunk_digests(path),
    }
    packed.write_meta(work, made)
    target = folder_of(folder, made)
    if target.exists():  # Without mirrored images, or of other images.
      shutil.rmtree(target)
    files.publish(work, target, DONE)
  return packed.read_meta(target)


def _fill(
  posterior: np.memmap, note: Path, parts: list, encode_batch: Callable, batch_size: int
) -> None:
  """Writes the rows that are missing, a batch at a time; `note` says how many are on disk."""
  text = note.read_text() if note.exists() else ''
  done = int(text) if text.isdigit() else 0
  if done:
    print(f'going on: {done:,} latents are there from an interrupted run')
  with tqdm(
    total=len(posterior), initial=done, unit='image', desc='encoding', mininterval=5
  ) as bar:
    noted = time.monotonic()
    for start, batch in _batches(parts, done, batch_size):
      count = len(batch)
      padding = [(0, batch_size - count)] + [(0, 0)] * 3
      encoded = encode_batch(np.pad(batch, padding))[:count]
      with np.errstate(over='ignore'):
        rows = encoded.astype(np.float16)
      if not np.isfinite(rows).all():
        raise InputError(
          'config.vae.checkpoint: this autoencoder gives posterior parameters that are not finite in '
          f'float16 (largest {np.abs(encoded).max():.3g}): it has diverged, or is none for these images'
        )
      posterior[start : start + count] = rows
      bar.update(count)
      if time.monotonic() - noted > NOTE_SECONDS:
        _note(posterior, note, start + count)
        noted = time.monotonic()
  _note(posterior, note, len(posterior))


def _note(posterior: np.memmap, note: Path, rows: int) -> None:
  """Writes first the rows, then the note that they are there."""
  posterior.flush()
  files.write(note, str(rows))


def _batches(parts: list[np.ndarray], done: int, batch_size: int) -> Iterator[tuple]:
  """Yields (first row, images) of the rows from `done` on; no batch crosses from part to part."""
  first = 0
  for part in parts:
    for start in range(max(done - first, 0), len(part), batch_size):
      yield first + start, np.ascontiguousarray(part[start : start + batch_size])
    first += len(part)


def statistics(posterior: np.ndarray) -> dict[str, Any]:
  """Measures samples of the posteriors (N, h, w, 2 c) exactly: E and Var over the noise in closed form.

  mean: of each channel. std: about the mean of all. std_centred: about the channels' means.
  """
  channels = posterior.shape[-1] // 2
  total, squares, count = np.zeros(channels), np.zeros(channels), 0
  for start in range(0, len(posterior), ROWS_AT_ONCE):
    rows = posterior[start : start + ROWS_AT_ONCE].astype(np.float64).reshape(-1, 2 * channels)
    mean, logvar = rows[:, :channels], rows[:, channels:]
    total += mean.sum(0)
    squares += (mean**2 + np.exp(logvar)).sum(0)
    count += len(rows)
  mean, square = total / count, squares / count
  return {
    'mean': mean.tolist(),
    'std': float(np.sqrt(square.mean() - mean.mean() ** 2)),
    'std_centred': float(np.sqrt((square - mean**2).mean())),
  }
