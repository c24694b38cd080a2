"""Reads a data set that TensorFlow Datasets has prepared, by its name: 'cifar10', 'imagenet2012:5.1.0'.

Looked for where TFDS keeps its data (TFDS_DATA_DIR, or ~/tensorflow_datasets); nothing is downloaded.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.data.readers.base import HOLDOUT_NAMES, SOURCES, Entry, Keep, Listing, Payload
from diffusion_jax.errors import InputError
from diffusion_jax.runtime import packages
from diffusion_jax.runtime.patience import progress

NAME = re.compile(r'[a-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?')


@dataclasses.dataclass(frozen=True, eq=False)
class TFDS:
  """builder: a prepared tfds.core.DatasetBuilder with features image and label."""

  origin: str
  builder: Any
  form: str = 'TFDS data set'

  def listing(self, keep: Keep) -> Listing:
    """Reads all labels once."""
    class_names = self.builder.info.features['label'].names
    held = [name for name in HOLDOUT_NAMES if name in self.builder.info.splits][:1]
    splits = {'train': 'train', **dict.fromkeys(held, 'holdout')}
    entries, stamp = [], f'{self.builder.info.full_name} {self.builder.data_dir}'
    for source_split, split in splits.items():
      examples = self._examples(source_split, {'label'})
      total = self.builder.info.splits[source_split].num_examples
      labels = progress(examples, f'reading labels of {source_split}', total, leave=False)
      for number, example in enumerate(labels):
        class_id = class_names[int(example['label'])]
        if keep(class_id):
          name, where = f'{number:08d}', f'{self.origin}/{source_split}/{number}'
          key = (source_split, number)
          entries.append(Entry(split, class_id, name, where, -1, stamp, key))
    left_out = sorted(set(self.builder.info.splits) - set(splits))
    notes = [f'left out, split {name}' for name in left_out]
    return Listing(entries, list(class_names), notes)

  def payloads(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Payload]]:
    wanted = {entry.key: number for number, entry in enumerate(entries)}
    for split in sorted({entry.key[0] for entry in entries}):
      for number, example in enumerate(self._examples(split, {'image'})):
        if (split, number) in wanted:
          yield wanted[split, number], bytes(example['image'])

  def _examples(self, split: str, fields: set[str]) -> Iterator[dict[str, Any]]:
    """Yields examples in the order of the files, images as the bytes that are stored."""
    import tensorflow_datasets as tfds

    as_stored = {'image': tfds.decode.SkipDecoding()}
    if self.builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:  # Not for tf.data.
      return iter(self.builder.as_data_source(split=split, decoders=as_stored))
    decoders = as_stored if 'image' in fields else None
    decoders = tfds.decode.PartialDecoding(dict.fromkeys(fields, True), decoders=decoders)
    read = tfds.ReadConfig(interleave_cycle_length=1, add_tfds_id=False)
    options = {'shuffle_files': False, 'decoders': decoders, 'read_config': read}
    return iter(self.builder.as_dataset(split=split, **options).as_numpy_iterator())


def matches(source: str) -> bool:
  """Matches the form of a TFDS name, of no path that exists; not 'digits', which is scikit-learn's."""
  return bool(NAME.fullmatch(source)) and source != 'digits' and not Path(source).exists()


def build(source: str) -> TFDS:
  """Raises: InputError without TFDS, or if the data set does not exist, is not prepared, or has no images."""
  packages.require(
    'tensorflow_datasets',
    'tf',
    f'config.data.source: {source!r} is no path that exists; as a TFDS data set it',
    'give a path',
  )
  logging.getLogger('absl').setLevel(logging.ERROR)  # TFDS warns of its own deprecations.
  import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')  # The accelerator belongs to JAX.
  import tensorflow_datasets as tfds

  from diffusion_jax.data import imagenet100_tfds  # noqa: F401 (registers imagenet100)

  try:
    builder = tfds.builder(source)
  except tfds.core.registered.DatasetNotFoundError as error:
    raise InputError(
      f'config.data.source: {source!r} does not exist, and TFDS has no data set of this name; '
      f'allowed {SOURCES}'
    ) from error
  except (ValueError, AssertionError) as error:
    raise InputError(f'config.data.source: {source!r}: {str(error).splitlines()[0]}') from error
  if not builder.data_path.exists():
    raise InputError(
      f'config.data.source: TFDS data set {source!r} is not prepared: {builder.data_path} does not '
      f'exist. Set TFDS_DATA_DIR to where it is, or run: python -c "import '
      f'diffusion_jax.data.imagenet100_tfds, tensorflow_datasets as tfds; '
      f"tfds.builder('{source}').download_and_prepare()\""
    )
  features = builder.info.features
  if not {'image', 'label'} <= set(features) or 'train' not in builder.info.splits:
    raise InputError(
      f'config.data.source: TFDS data set {source!r} has features {sorted(features)} and splits '
      f'{sorted(builder.info.splits)}; expected image and label, and a split train'
    )
  return TFDS(source, builder)
