"""What is said where a package beyond the lean installation is missing."""

import sys

import pytest

from diffusion_jax.errors import InputError
from diffusion_jax.runtime import packages


def test_a_package_is_found_without_importing_it(monkeypatch):
  monkeypatch.delitem(sys.modules, 'tomllib', raising=False)
  assert packages.is_installed('tomllib') and 'tomllib' not in sys.modules
  assert not packages.is_installed('tomllib', 'no_such_package')
  packages.require('tomllib', 'tf', 'nothing')


def test_what_is_missing_is_named_with_its_extra():
  with pytest.raises(
    InputError, match=r'^x: 1 needs .* no-such-package,.*\btf\b.*; or do without$'
  ):
    packages.require('no_such_package', 'tf', 'x: 1', 'do without')
