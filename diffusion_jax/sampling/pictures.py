"""The pictures of a sample set: grid.png, denoising.gif, and the animation's frames in frames.npz.

frames.npz holds, of the first sample of each row of the picture (of a model without classes: of the
first samples), frames (F, R, H, W, C) uint8 from noise to result, labels (R,) int32, index (R,) uint32
(the samples' numbers) and t (F,) float32, the times of the frames.
"""

from pathlib import Path

import jax
import numpy as np

from diffusion_jax.diffusion.samplers.base import frame_slots
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.models.latents import Scaling
from diffusion_jax.reporting import images
from diffusion_jax.runtime import files, hosts, mesh
from diffusion_jax.sampling import sample_set
from diffusion_jax.types import Array

MAX_ROWS = 10  # Classes in the grid and the animation.
ANIMATION = ('denoising.gif', 'frames.npz')


def picture_indices(experiment: Experiment, limit: int = MAX_ROWS * 100) -> np.ndarray:
  """The samples of a picture, `limit` at most: (rows, columns) uint32, a row a label.

  With a single label, or none, the first samples fill the rows.
  """
  sample = experiment.config.sample
  labels = experiment.sample_labels(np.arange(sample.num_samples))
  distinct = np.unique(labels)
  if len(distinct) == 1:
    count = min(MAX_ROWS * sample.grid_columns, limit, len(labels))
    columns = min(sample.grid_columns, count)
    return np.arange(count // columns * columns, dtype=np.uint32).reshape(-1, columns)
  rows = [np.flatnonzero(labels == label) for label in distinct[: min(MAX_ROWS, limit)]]
  columns = min(sample.grid_columns, limit // len(rows), *map(len, rows))
  return np.stack([row[:columns] for row in rows]).astype(np.uint32)


def shown_indices(experiment: Experiment) -> np.ndarray:
  """The samples that stand for a set, MAX_ROWS at most, (n,) uint32: the first of each class.

  Without classes, or with a single label, the first ones.
  """
  picture = picture_indices(experiment)
  chosen = picture[:, 0] if _rows_are_classes(experiment, picture) else picture.reshape(-1)
  return chosen[:MAX_ROWS]


def row_names(experiment: Experiment, picture: np.ndarray) -> list[str]:
  """The class of every row, or nothing if the rows are not classes."""
  if not _rows_are_classes(experiment, picture):
    return []
  return [experiment.label_names[label] for label in experiment.sample_labels(picture[:, 0])]


def _rows_are_classes(experiment: Experiment, picture: np.ndarray) -> bool:
  labels = experiment.sample_labels(picture[:, 0])
  return experiment.config.num_classes > 0 and len(np.unique(labels)) == len(labels)


def draw_grid(experiment: Experiment, folder: Path) -> None:
  """grid.png from the stored samples."""
  picture = picture_indices(experiment)
  stored = sample_set.open_parts(folder, experiment.config.sample.num_samples)
  made = stored.read(picture.reshape(-1))['image'].reshape(*picture.shape, *stored.shape)
  files.write_png(folder / 'grid.png', images.grid(made, row_names(experiment, picture)))


def is_animated(folder: Path) -> bool:
  """Whether the animation is there, and its frames."""
  return all((folder / name).exists() for name in ANIMATION)


def draw_animation(
  experiment: Experiment,
  folder: Path,
  scaling: Scaling | None,
  frames: Array,
  picture: np.ndarray,
) -> None:
  """denoising.gif and frames.npz from x_t (F, N, *x0_shape) of the samples of a picture.

  frames: a copy on every device. Called by all processes, written by the first.
  """
  made = decode_frames(experiment, scaling, frames)
  made = made.reshape(len(made), *picture.shape, *made.shape[2:])  # (F, rows, columns, H, W, C)

  def write():
    names, side = row_names(experiment, picture), images.MIN_SIDE_ANIMATED
    images.save_gif(folder / ANIMATION[0], [images.grid(frame, names, side) for frame in made])
    save_frames(experiment, folder / ANIMATION[1], made, picture)

  hosts.from_first(write)


def decode_frames(experiment: Experiment, scaling: Scaling | None, frames: Array) -> np.ndarray:
  """x_t (F, N, *x0_shape) -> images (F, N, H, W, C) uint8, a frame at a time."""
  devices, count = experiment.mesh, frames.shape[1]
  size = mesh.round_up(count, devices)
  rows = np.minimum(mesh.local_rows(devices, size), count - 1)
  to_images = jax.jit(experiment.to_images, out_shardings=mesh.replicated(devices))
  made = []
  for x_t in jax.device_get(frames):
    placed = mesh.to_devices(x_t[rows], mesh.batch_sharding(devices))
    made.append(jax.device_get(to_images(experiment.decoder, scaling, placed))[:count])
  return np.stack(made)


def save_frames(experiment: Experiment, path: Path, made: np.ndarray, picture: np.ndarray) -> None:
  """frames.npz from images (F, rows, columns, H, W, C) of a picture, written beside and renamed."""
  sample = experiment.config.sample
  if _rows_are_classes(experiment, picture):
    index, frames = picture[:, 0], made[:, :, 0]
  else:
    flat = made.reshape(len(made), -1, *made.shape[3:])
    index, frames = picture.reshape(-1)[:MAX_ROWS], flat[:, :MAX_ROWS]
  times = experiment.times(sample.num_steps)
  shown = frame_slots(sample.num_steps, len(made)) < len(made)
  t, labels = times[shown].astype(np.float32), experiment.sample_labels(index)
  files.write_npz(path, frames=frames, labels=labels, index=index, t=t)
