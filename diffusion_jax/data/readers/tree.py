"""A folder of images: train/CLASS/FILE with validation/, val/ or test/ beside it, or CLASS/FILE."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion_jax.data.readers import imagenet
from diffusion_jax.data.readers.base import Entry, File, Keep, Listing, Payload, Slice, tree_listing
from diffusion_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Tree:
  """root: an existing folder."""

  root: Path
  form: str = 'folder of images'

  @property
  def origin(self) -> str:
    return str(self.root)

  def listing(self, keep: Keep) -> Listing:
    """Symbolic links are followed: they are the user's own."""
    files: list[File] = []
    folders: list[str] = []

    def walk(path: str, relative: str) -> None:
      try:
        with os.scandir(path) as items:
          found = sorted(items, key=lambda item: item.name)
      except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from error
      for item in found:
        name = f'{relative}/{item.name}' if relative else item.name
        if item.is_dir():
          folders.append(name)
          walk(item.path, name)
        else:
          size = item.stat().st_size if item.is_file() else 0  # A dangling link is an empty file.
          files.append(File(name, size, item.path))

    walk(str(self.root), '')
    return tree_listing(files, folders, self.origin, keep, lambda path: str(self.root / path))

  def payloads(self, entries: Sequence[Entry]) -> Iterator[tuple[int, Payload]]:
    for number, entry in enumerate(entries):
      yield number, Slice(entry.key)


def matches(source: str) -> bool:
  """A folder that does not hold ILSVRC2012's archives."""
  return Path(source).expanduser().is_dir() and not imagenet.matches(source)


def build(source: str) -> Tree:
  """source: a folder."""
  return Tree(Path(source).expanduser().absolute())
