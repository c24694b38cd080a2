"""Reads images without prepared data, from folders of files and TFDS. For the benchmark only."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data.decode import center_crop
from diffusion_jax.types import DataSource

QUALITY = 95


def write_folder(source: DataSource, folder: Path, count: int, scale: int = 1) -> list[Path]:
  """Writes `count` images spread over the source, enlarged by `scale`, as folder/LABEL/NNNNN.jpg."""
  paths = []
  for number in range(count):
    example = source.read(np.asarray([number * source.num_examples // count]))
    pixels = np.broadcast_to(example['image'][0], (*example['image'].shape[1:3], 3))
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = (image.width * scale, image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)  # A copy, if the size is the same.
    path = folder / f'{int(example["label"][0]):04d}' / f'{number:05d}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=QUALITY)
    paths.append(path)
  return paths


def folder_batches(paths: list[Path], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  """Reads files of one size through tf.data: shuffled, decoded by all cores, batched, prefetched."""
  import tensorflow as tf

  def load(path, label):
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    return {'image': image, 'label': label}

  names, labels = [str(p) for p in paths], [int(p.parent.name) for p in paths]
  dataset = tf.data.Dataset.from_tensor_slices((names, np.asarray(labels, np.int32)))
  dataset = dataset.shuffle(len(paths)).repeat().map(load, tf.data.AUTOTUNE)
  return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def write_tfds(paths: list[Path], folder: Path, file_format: str):
  """Writes the files as a TFDS set. file_format: 'tfrecord' or 'array_record'. Returns: its builder."""
  import tensorflow_datasets as tfds

  examples = [{'image': str(path), 'label': int(path.parent.name)} for path in paths]
  classes = 1 + max(example['label'] for example in examples)
  image = tfds.features.Image(encoding_format='jpeg')
  label = tfds.features.ClassLabel(num_classes=classes)
  features = tfds.features.FeaturesDict({'image': image, 'label': label})
  store = tfds.dataset_builders.store_as_tfds_dataset
  name, splits = f'benchmark_{file_format}', {'train': list(enumerate(examples))}
  return store(name, '1.0.0', features, splits, data_dir=folder, file_format=file_format)


def tfds_batches(builder, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  """Reads tfrecord files by the pipeline that TFDS recommends: shuffled, decoded, batched, prefetched."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  config = tfds.ReadConfig(try_autocache=False)  # Only small sets get it.
  dataset = builder.as_dataset(split='train', shuffle_files=True, read_config=config)
  dataset = dataset.repeat().shuffle(1000)
  dataset = dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
  return iter(tfds.as_numpy(dataset))


def tfds_random_access_batches(builder, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
  """Reads array_record files by tfds.data_source: by number, as a loader with an exact order does."""
  source = builder.as_data_source(split='train')
  rng = np.random.default_rng(0)
  while True:
    examples = [source[int(i)] for i in rng.integers(len(source), size=batch_size)]
    yield {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def plain_pil(paths: list[Path], size: int) -> np.ndarray:
  """Decodes the files as a script would: one process, one file after another."""
  return np.stack([np.asarray(center_crop(Image.open(p).convert('RGB'), size)) for p in paths])
