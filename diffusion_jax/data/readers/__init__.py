"""Reads foreign forms of image sets, one a file.

A reader is a file that defines `matches(source) -> bool`, true for one reader at most, and
`build(source) -> Reader`. Adding one touches that file and its test.
"""

import importlib
import pkgutil

from diffusion_jax.data.readers.base import SOURCES, Reader
from diffusion_jax.errors import InputError


def names() -> list[str]:
  """Lists the files here that define a reader."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != 'base')


def open_source(source: str) -> Reader:
  """Returns the reader of config.data.source: a path or the name of a TFDS data set.

  Raises: InputError if no reader knows what it is, or it is not there.
  """
  if not source:
    raise InputError(f'config.data.source is empty; allowed {SOURCES}')
  for name in names():
    module = importlib.import_module(f'{__name__}.{name}')
    if module.matches(source):
      return module.build(source)
  raise InputError(f'config.data.source: {source!r} does not exist; allowed {SOURCES}')
