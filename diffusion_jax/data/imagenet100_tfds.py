"""ImageNet-100 as a data set of TensorFlow Datasets.

    import diffusion_jax.data.imagenet100_tfds
    tfds.load('imagenet100')            # the list 'cmc'; 'imagenet100/kaggle' is the other

ILSVRC2012's archives, which image-net.org gives to registered researchers, are looked for in
~/tensorflow_datasets/downloads/manual, or in download_config.manual_dir. Importing this module imports
TensorFlow Datasets: it is the one module that exists for it.
"""

import tensorflow_datasets as tfds

from diffusion_jax.data import class_lists
from diffusion_jax.data.readers import imagenet


class Imagenet100(tfds.core.GeneratorBasedBuilder):
  """100 classes of ILSVRC2012, the files as they are; labels are WNIDs in sorted order."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012 (as TFDS wants it)
    tfds.core.BuilderConfig(name='cmc', description='Tian et al. 2020, arXiv:1906.05849'),
    tfds.core.BuilderConfig(name='kaggle', description='the list of the Kaggle data set'),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f'Put {imagenet.TRAIN}, {imagenet.VALIDATION} and {imagenet.DEVKIT} from image-net.org here.'
  )

  def _info(self) -> tfds.core.DatasetInfo:
    ids = class_lists.read(self.builder_config.name, 'sorted').ids
    features = {
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=ids),
      'file_name': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description='100 classes of ILSVRC2012',
      features=tfds.features.FeaturesDict(features),
      supervised_keys=('image', 'label'),
      homepage='https://image-net.org/',
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    reader = imagenet.build(str(dl_manager.manual_dir))
    wanted = class_lists.read(self.builder_config.name, 'sorted')
    listing = reader.listing(lambda class_id: class_id in wanted.ids)
    class_lists.require_found(wanted, listing.class_ids, reader.origin)
    entries = sorted(listing.entries, key=lambda e: (e.class_id, e.name))
    return {
      split: self._generate_examples([e for e in entries if e.split == kind])
      for split, kind in (('train', 'train'), ('validation', 'holdout'))
    }

  def _generate_examples(self, entries):
    for number, entry in enumerate(entries):
      image = entry.key.read()
      yield number, {'image': image, 'label': entry.class_id, 'file_name': entry.name}
