"""Reads the official archives of ILSVRC2012 as they are downloaded from image-net.org.

ILSVRC2012_img_train.tar is a tar of one tar a class, ILSVRC2012_img_val.tar is flat, and the labels
of the latter are numbers in the devkit, whose meta.mat says which WNID each number means.
"""

import dataclasses
import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data.readers import base
from diffusion_jax.errors import DamagedError, InputError

TRAIN = 'ILSVRC2012_img_train.tar'
VALIDATION = 'ILSVRC2012_img_val.tar'
DEVKIT = 'ILSVRC2012_devkit_t12.tar.gz'
GROUND_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'


@dataclasses.dataclass(frozen=True)
class ILSVRC2012:
  """folder: holds the three archives."""

  folder: Path
  form: str = 'archives of ILSVRC2012'

  @property
  def origin(self) -> str:
    return str(self.folder)

  def listing(self, keep: base.Keep) -> base.Listing:
    """Reads headers only. Raises: InputError if an archive is not what its name says."""
    path = self.folder / TRAIN
    entries, class_ids = [], []
    with base.told(path), tarfile.open(path) as outer:
      for member in outer:
        class_id = Path(base.checked_member(member.name, str(path))).stem
        if not member.isfile() or not re.fullmatch(r'n\d{8}', class_id):
          raise InputError(f'{path}: found member {member.name!r}, expected one WNID.tar a class')
        class_ids.append(class_id)
        if keep(class_id):
          entries += self._class_entries(outer, member, class_id)
      base.require_end(outer)
    entries += self._validation(keep)
    return base.Listing(entries, sorted(class_ids), [])

  def _class_entries(self, outer: tarfile.TarFile, tar: tarfile.TarInfo, class_id: str):
    path = self.folder / TRAIN
    with tarfile.open(fileobj=outer.extractfile(tar)) as inner:
      found = [self._entry(path, 'train', class_id, m, tar.offset_data) for m in inner]
      base.require_end(inner)
    if not found:
      raise InputError(f'{path}: class {class_id} has no images (member {tar.name})')
    return found

  def _entry(self, path: Path, split: str, class_id: str, member: tarfile.TarInfo, start: int):
    name = base.checked_member(member.name, str(path), is_special=not member.isfile())
    key = base.Slice(str(path), start + member.offset_data, member.size)
    where, stamp = f'{path}:{class_id}/{name}', base.stamp_of(path.stat())
    return base.Entry(split, class_id, name, where, member.size, stamp, key)

  def _validation(self, keep: base.Keep) -> list[base.Entry]:
    path = self.folder / VALIDATION
    with base.told(path), tarfile.open(path) as file:
      members = sorted(file, key=lambda member: member.name)
      base.require_end(file)
    with base.told(self.folder / DEVKIT):
      classes = validation_classes(self.folder / DEVKIT)
    if len(members) != len(classes):
      raise InputError(f'{path}: {len(members)} images, but {DEVKIT} has labels for {len(classes)}')
    pairs = zip(members, classes)
    return [self._entry(path, 'holdout', c, member, 0) for member, c in pairs if keep(c)]

  def payloads(self, entries: Sequence[base.Entry]) -> Iterator[tuple[int, base.Payload]]:
    for number, entry in enumerate(entries):
      yield number, entry.key


def validation_classes(devkit: Path) -> list[str]:
  """Reads the WNID of every validation image, in the order of the file names.

  Raises: InputError if the devkit holds no label list or no meta.mat.
  """
  from scipy.io import loadmat
  from scipy.io.matlab import MatReadError

  with tarfile.open(devkit) as file:
    members = {Path(m.name).name: m for m in file if m.isfile()}
    if not {GROUND_TRUTH, 'meta.mat'} <= set(members):
      raise InputError(f'{devkit}: expected {GROUND_TRUTH} and meta.mat in it')
    numbers = file.extractfile(members[GROUND_TRUTH]).read().split()
    matlab = file.extractfile(members['meta.mat']).read()
  try:
    synsets = loadmat(io.BytesIO(matlab), squeeze_me=True)['synsets'].reshape(-1)
    wnids = {int(s['ILSVRC2012_ID']): str(s['WNID']) for s in synsets}
    numbers = [int(number) for number in numbers]
  except (MatReadError, ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
    raise DamagedError(f'{devkit}: {GROUND_TRUTH} or meta.mat is damaged ({error})') from error
  unknown = sorted(set(numbers) - set(wnids))
  if unknown:
    raise InputError(f'{devkit}: {GROUND_TRUTH} has labels {unknown[:5]} that meta.mat lacks')
  return [wnids[number] for number in numbers]


def _folder(source: str) -> Path:
  path = Path(source).expanduser().absolute()
  return path.parent if path.name in (TRAIN, VALIDATION, DEVKIT) else path


def matches(source: str) -> bool:
  """Matches one of the archives, or a folder that holds one of the two large ones."""
  folder = _folder(source)
  named = Path(source).name in (TRAIN, VALIDATION, DEVKIT)
  return named or any((folder / name).exists() for name in (TRAIN, VALIDATION))


def build(source: str) -> ILSVRC2012:
  """Raises: InputError if one of the three archives is missing."""
  folder = _folder(source)
  missing = [name for name in (TRAIN, VALIDATION, DEVKIT) if not (folder / name).is_file()]
  if missing:
    raise InputError(
      f'{folder}: {", ".join(missing)} missing; expected {TRAIN}, {VALIDATION} and {DEVKIT}, '
      'as downloaded from image-net.org'
    )
  return ILSVRC2012(folder)
