"""Stores the posteriors of an autoencoder for a prepared image set, which latent systems train on.

SET/latents-FINGERPRINT/, FINGERPRINT that of the autoencoder, holds
  posterior.npy  (N, h, w, 2 c) float16, mean and log variance: of the training images, of the same
                 mirrored (if they were), of the held-out images
  meta.json      of which images by which autoencoder, their statistics, digests 16 MiB at a time
Several processes, one a host, encode a share of the batches each.
"""

import collections
import contextlib
import functools
import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffusion_jax.data import packed, shares
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.errors import InputError, Stop
from diffusion_jax.runtime import files, hosts, lease
from diffusion_jax.types import Array

DONE, NOTES = 'done', 'done*'  # Beside an unfinished file: process N > 0 of several keeps done-N.
ROWS_AT_ONCE = 4096  # When statistics are taken.
IN_FLIGHT = 2  # Batches that are handed over beyond the one that is waited for.
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
  encode_batch: Callable[[np.ndarray], Array],
  *,
  batch_size: int,
  mirrored: bool,
) -> dict[str, Any]:
  """Makes the latents of a verified image set, or goes on with them. Returns: their description.

  Called by all processes. autoencoder: its 'fingerprint' and 'origin', noted. encode_batch:
  (batch_size, H, W, C) uint8 -> (batch_size, h, w, 2 c) float32, without the other processes; it may
  return before that is computed.
  Raises: InputError for a full disk, or an autoencoder whose output is not finite.
  """
  work = folder / f'.encoding-{autoencoder["fingerprint"]}-{"mirrored" if mirrored else "plain"}'
  images = np.asarray(np.load(folder / 'images.npy', mmap_mode='r'))
  train = meta['num_train']
  parts = [images[:train], images[:train, :, ::-1], images[train:]]
  parts = parts if mirrored else [parts[0], parts[2]]
  height, width, channels = latent_shape
  shape = (sum(map(len, parts)), height, width, 2 * channels)
  path = work / 'posterior.npy'
  advising = functools.partial(files.advising, work, 2 * math.prod(shape))

  def begin():
    with advising():
      work.mkdir(parents=True, exist_ok=True)
      files.reserved_array(path, shape, np.float16, NOTES)
      missing = shares.missing(shape[0], [piece[:2] for piece in noted(work)])
    done = shape[0] - len(shares.rows_of(missing))
    if done:
      print(f'going on: {done:,} latents are there from an interrupted run')
    return missing

  def fill(missing, number, count, check):
    batches = list(shares.cut([len(part) for part in parts], missing, batch_size))
    with advising():
      own = shares.share(batches, number, count)
      print(f'encoding {len(own):,} of {len(batches):,} missing batches', flush=True)
      _fill(path, parts, own, encode_batch, batch_size=batch_size, check=check)

  def finish():
    with advising():
      done = noted(work)
      if hosts.count() > 1 or list(work.glob(f'{DONE}-*')):
        done = whole(np.load(path, mmap_mode='r'), done)
      missing = shares.missing(shape[0], [piece[:2] for piece in done])
    if missing:
      again = len(shares.rows_of(missing))
      print(f'{again:,} latents did not arrive whole from all processes: encoding them again')
      fill(missing, 0, 1, lambda: None)
    with advising():
      made = {
        'version': packed.VERSION,
        'images': meta['fingerprint'],
        'autoencoder': dict(autoencoder),
        'mirrored': mirrored,
        'latent_shape': list(latent_shape),
        'statistics': statistics(np.load(path, mmap_mode='r')[: train * (1 + mirrored)]),
        'posterior_bytes': path.stat().st_size,
        'chunk_digests': packed.chunk_digests(path),
      }
      packed.write_meta(work, made)
      target = folder_of(folder, made)
      if target.exists():  # Without mirrored images, or of other images.
        shutil.rmtree(target)
      files.publish(work, target, NOTES)
      return packed.read_meta(target)

  with advising(), lease.held(folder / f'{work.name}.lease', f'encoding latents in {folder}'):
    hosts.require_shared(folder, 'config.data.dir', shares.ADVICE)
    missing = hosts.from_first(begin)
    hosts.together(lambda check: fill(missing, hosts.number(), hosts.count(), check))
    return hosts.from_first(finish)


def _fill(
  path: Path,
  parts: Sequence[np.ndarray],
  batches: Sequence[tuple[int, int]],
  encode_batch: Callable,
  *,
  batch_size: int,
  check: Callable[[], None],
) -> None:
  """Writes the rows of these batches; this process's note says which are on disk. Calls check() often."""
  posterior = np.load(path, mmap_mode='r+')
  number, total = hosts.number(), sum(stop - start for start, stop in batches)
  note = Note(posterior, path.with_name(f'{DONE}-{number}' if number else DONE))
  options = {'unit': 'image', 'desc': 'encoding', 'mininterval': 5, 'disable': number > 0}
  with tqdm(total=total, **options) as bar:
    for start, stop, made in _encoded(parts, batches, encode_batch, batch_size):
      encoded = np.asarray(made)[: stop - start]  # Waits for it.
      with np.errstate(over='ignore'):
        rows = encoded.astype(np.float16)
      if not np.isfinite(rows).all():
        raise InputError(
          'config.vae.checkpoint: this autoencoder gives posterior parameters that are not finite in '
          f'float16 (largest {np.abs(encoded).max():.3g}): it has diverged, or is none for these images'
        )
      posterior[start:stop] = rows
      note.add(start, rows)
      bar.update(len(rows))
      check()
  note.write()


def _encoded(
  parts: Sequence[np.ndarray],
  batches: Sequence[tuple[int, int]],
  encode_batch: Callable,
  batch_size: int,
) -> Iterator[tuple[int, int, Array]]:
  """Yields (start, stop, their posteriors), while the devices compute those of the next IN_FLIGHT batches."""
  flight = collections.deque()
  for start, stop in batches:
    batch = _images(parts, start, stop)
    padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
    flight.append((start, stop, encode_batch(np.pad(batch, padding))))
    if len(flight) > IN_FLIGHT:
      yield flight.popleft()
  yield from flight


def _images(parts: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
  """Returns these rows, which lie in one part."""
  for part in parts:
    if start < len(part):
      break
    start, stop = start - len(part), stop - len(part)
  return np.ascontiguousarray(part[start:stop])


class Note:
  """The rows that a process has finished: pieces [start, stop, checksum)."""

  def __init__(self, posterior: np.memmap, path: Path):
    self._posterior, self._path = posterior, path
    self._pieces = _read(path)
    self._open = False  # Whether the last piece may grow.
    self._written = time.monotonic()

  def add(self, start: int, rows: np.ndarray) -> None:
    """Notes rows from `start` on; on disk within some seconds."""
    if not self._open or self._pieces[-1][1] != start:
      self._pieces.append([start, start, 0])
    piece = self._pieces[-1]
    piece[1], piece[2] = start + len(rows), zlib.crc32(rows.tobytes(), piece[2])
    self._open = True
    if time.monotonic() - self._written > NOTE_SECONDS:
      self.write()

  def write(self) -> None:
    """Writes first the rows, then the note that they are there."""
    self._posterior.flush()
    files.write(self._path, json.dumps(self._pieces))
    self._written, self._open = time.monotonic(), False


def _read(path: Path) -> list[list[int]]:
  """Reads a note; one that is missing or of another form notes nothing."""
  with contextlib.suppress(OSError, ValueError, TypeError):
    return [
      [int(n) for n in (start, stop, checksum)]
      for start, stop, checksum in json.loads(path.read_text())
    ]
  return []


def noted(work: Path) -> list[list[int]]:
  """Returns the finished pieces [start, stop, checksum) of all processes."""
  return [piece for path in sorted(work.glob(NOTES)) for piece in _read(path)]


def whole(posterior: np.ndarray, pieces: Sequence[Sequence[int]]) -> list[Sequence[int]]:
  """Returns the pieces that are as they were written: two hosts that write to one page at once may spoil it."""
  return [p for p in pieces if zlib.crc32(np.ascontiguousarray(posterior[p[0] : p[1]])) == p[2]]


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
