"""Small image sets in every form that prepare reads, made from smooth random pictures."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion_jax.data import class_lists, packed
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.data.readers import imagenet


def picture(seed: int, size=(48, 40), mode: str = 'RGB') -> Image.Image:
  """A smooth picture, (width, height), different for every seed."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
  return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, name: str = 'JPEG', **options) -> bytes:
  file = io.BytesIO()
  image.save(file, format=name, **options)
  return file.getvalue()


def write_tree(root: Path, counts: dict[str, int], size=(48, 40)) -> Path:
  """counts: 'train/cat' -> images. Every picture depends on its path alone."""
  for folder, count in counts.items():
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
      seed = sum(map(ord, folder)) * 1000 + i
      (root / folder / f'{i:04d}.jpg').write_bytes(encoded(picture(seed, size)))
  return root


SMALL = {'train/cat': 5, 'train/dog': 4, 'train/eel': 3, 'val/cat': 2, 'val/dog': 2, 'val/eel': 2}


def as_tar(root: Path, path: Path, mode: str = 'w') -> Path:
  with tarfile.open(path, mode) as file:
    for item in sorted(root.rglob('*'), reverse=True):  # Not the order of the packed set.
      file.add(item, item.relative_to(root.parent), recursive=False)
  return path


def as_zip(root: Path, path: Path) -> Path:
  with zipfile.ZipFile(path, 'w') as file:
    for item in sorted(root.rglob('*'), reverse=True):
      file.write(item, item.relative_to(root.parent))
  return path


def add_bytes(file: tarfile.TarFile, name: str, content: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(content)
  file.addfile(member, io.BytesIO(content))


def write_ilsvrc2012(
  folder: Path, wnids: list[str], per_class: int = 2, validation: int = 1
) -> Path:
  """The three archives with these classes; validation images are dealt out from the last class."""
  from scipy.io import savemat

  folder.mkdir(parents=True, exist_ok=True)
  with tarfile.open(folder / imagenet.TRAIN, 'w') as outer:
    for number, wnid in enumerate(wnids):
      inner = io.BytesIO()
      with tarfile.open(fileobj=inner, mode='w') as file:
        for i in range(per_class):
          add_bytes(file, f'{wnid}_{i}.JPEG', encoded(picture(1000 * number + i)))
      add_bytes(outer, f'{wnid}.tar', inner.getvalue())
  order = [c for c in reversed(range(len(wnids))) for _ in range(validation)]
  with tarfile.open(folder / imagenet.VALIDATION, 'w') as file:
    for i, number in reversed(list(enumerate(order))):
      name = f'ILSVRC2012_val_{i + 1:08d}.JPEG'
      add_bytes(file, name, encoded(picture(1000 * number + 500)))
  identifiers = {number: 7 * number % len(wnids) + 1 for number in range(len(wnids))}  # Not sorted.
  kinds = [('ILSVRC2012_ID', 'f8'), ('WNID', object)]
  synsets = np.array([(identifiers[n], wnid) for n, wnid in enumerate(wnids)], dtype=kinds)
  matlab = io.BytesIO()
  savemat(matlab, {'synsets': synsets})
  truth = ''.join(f'{identifiers[number]}\n' for number in order)
  with tarfile.open(folder / imagenet.DEVKIT, 'w:gz') as file:
    add_bytes(file, 'ILSVRC2012_devkit_t12/data/meta.mat', matlab.getvalue())
    add_bytes(file, f'ILSVRC2012_devkit_t12/data/{imagenet.GROUND_TRUTH}', truth.encode())
  return folder


def cmc_and_others() -> list[str]:
  """The 100 WNIDs of cmc and three others."""
  wnids = class_lists.read('cmc', 'sorted').ids
  others = [w for w in class_lists.imagenet_names() if w not in wnids][:3]
  return sorted([*wnids, *others])


def digits(folder: Path) -> dict[str, Arrays]:
  """scikit-learn's digits, prepared in `folder`: split -> source."""
  recipe = Recipe('digits', 8, 1, 'all', 'sorted', 297, 0)
  prepared = prepare('digits', recipe, folder, max_bad_fraction=0, workers=1)
  return {split: packed.open_split(*prepared, split) for split in packed.SPLITS}
