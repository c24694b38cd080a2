"""Finds packages beyond the lean installation and says how to install a missing one."""

import importlib.util

from diffusion_jax.errors import InputError


def is_installed(*modules: str) -> bool:
  """Returns whether all of them can be imported, without importing them."""
  return all(importlib.util.find_spec(module) is not None for module in modules)


def require(module: str, extra: str, what: str, instead: str = '') -> None:
  """Checks that a package is installed.

  extra: the extra of diffusion_jax that installs it. what: the field and value that need it. instead:
  what works without it.
  Raises: InputError that names the package and the extra.
  """
  if not is_installed(module):
    package, instead = module.replace('_', '-'), f'; or {instead}' if instead else ''
    raise InputError(
      f'{what} needs the package {package}, which is not installed: pip install {package}, or the extra '
      f'{extra!r} of diffusion_jax, see docs/install.md{instead}'
    )
