"""ImageNet-100 at 128 px, or any other images, prepared once for every run that trains on them.

    python main.py --config=configs/data.py --workdir=runs/data --mode=prepare \
        --config.data.source=PATH_OR_TFDS_NAME --config.data.dir=DATA

PATH is a folder train/CLASS/*.jpg with validation/, val/ or test/ beside it, the same in a .tar,
.tar.gz or .zip, or the folder with ILSVRC2012's three archives; a TFDS name is for instance
imagenet2012. configs/folder.py is for images of your own; with it, or with
--config.data.class_list=all here, every class counts, and the set is named after its source.
ImageNet-100 comes to 126,689 + 5,000 images and 6.5 GB; docs/data.md has the rest.
"""

from diffusion_jax.configs import base


def get_config():
  """base, with the data of the eight systems."""
  config = base.get_config()
  config.num_classes = -1
  config.data.name = ''
  config.data.image_size = 128
  config.data.channels = 3
  config.data.class_list = 'cmc'
  config.data.holdout = 0
  config.data.flip = True
  config.data.source = ''
  config.eval.features.name = 'inception'
  config.eval.metrics = ('fid', 'inception_score', 'kid', 'precision_recall')
  return config
