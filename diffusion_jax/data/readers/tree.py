"""Reads a folder of images: train/CLASS/FILE with validation/, val/ or test/ beside it, or CLASS/FILE."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data.readers import base, imagenet
from diffusion_jax.errors import InputError
from diffusion_jax.runtime.patience import progress


@dataclasses.dataclass(frozen=True)
class Tree:
  """root: an existing folder."""

  root: Path
  form: str = 'folder of images'

  @property
  def origin(self) -> str:
    return base.printable(str(self.root))

  def listing(self, keep: base.Keep) -> base.Listing:
    """Follows symbolic links: they are the user's own. Raises: InputError if they form a loop."""
    files, folders = [], []

    def walk(path: str, relative: str, above: frozenset[str]) -> None:
      real = os.path.realpath(path)
      if real in above:
        raise InputError(f'{base.printable(path)}: a symbolic link to a folder that it lies in')
      try:
        with os.scandir(path) as items:
          found = sorted(items, key=lambda item: item.name)
      except OSError as error:
        raise InputError(f'{base.printable(path)}: cannot be read ({error.strerror})') from error
      bar.update(len(found))
      for item in found:
        name = base.printable(f'{relative}/{item.name}' if relative else item.name)
        if item.is_dir():
          folders.append(name)
          walk(item.path, name, above | {real})
        elif item.is_file():
          status = item.stat()
          files.append(base.File(name, status.st_size, base.stamp_of(status), item.path))
        else:  # A dangling link is a file that cannot be read.
          files.append(base.File(name, 0, '', item.path))

    with progress(None, 'listing', None, unit='file', leave=False) as bar:
      walk(str(self.root), '', frozenset())
    return base.tree_listing(files, folders, self.origin, keep, '/')

  def payloads(self, entries: Sequence[base.Entry]) -> Iterator[tuple[int, base.Payload]]:
    for number, entry in enumerate(entries):
      yield number, base.Slice(entry.key)


def matches(source: str) -> bool:
  """Matches a folder that does not hold ILSVRC2012's archives; './digits' is a folder, 'digits' is not."""
  folder = Path(source).expanduser().is_dir()
  return folder and source != 'digits' and not imagenet.matches(source)


def build(source: str) -> Tree:
  """source: a folder."""
  return Tree(Path(source).expanduser().absolute())
