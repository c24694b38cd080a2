"""A Python in which only the packages of requirements-core.txt, and what these require, can be imported."""

import importlib.metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TOOLS = {'pip', 'setuptools', 'pkg-resources', 'wheel'}
HOOK = """
import sys
from importlib.machinery import PathFinder


class Lean(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition('.')[0] not in {names!r}:
      return super().find_spec(name, path, target)


sys.meta_path = [Lean if finder is PathFinder else finder for finder in sys.meta_path]
"""


def lean_distributions():
  """Their canonical names."""
  lines = (ROOT / 'requirements-core.txt').read_text().splitlines()
  wanted = [line.split('#')[0] for line in lines if line and not line.startswith('#')]
  found, todo = set(), [Requirement(line) for line in wanted]
  while todo:
    requirement = todo.pop()
    inner = [Requirement(line) for line in importlib.metadata.requires(requirement.name) or []]
    for extra in {'', *requirement.extras}:
      if (canonicalize_name(requirement.name), extra) not in found:
        found.add((canonicalize_name(requirement.name), extra))
        todo += [r for r in inner if not r.marker or r.marker.evaluate({'extra': extra})]
  return {name for name, _ in found}


def missing_modules():
  """Installed modules that a lean installation does not have."""
  lean = lean_distributions() | TOOLS
  owners = importlib.metadata.packages_distributions()
  return {
    module
    for module, names in owners.items()
    if module != 'tests' and not {canonicalize_name(name) for name in names} & lean
  }


def make_lean(folder):
  """A folder for PYTHONPATH; in a Python that starts with it, the others cannot be imported."""
  folder.mkdir()
  (folder / 'sitecustomize.py').write_text(HOOK.format(names=missing_modules()))
  return folder
