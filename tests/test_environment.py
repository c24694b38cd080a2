"""What tests/__init__.py, conftest.py and pyproject.toml promise to every test."""

import os
import re
import warnings
from pathlib import Path

import jax
import pytest

from tests import conftest

ROOT = Path(__file__).parents[1]


def test_the_compiler_is_quick_and_remembers():
  assert jax.config.read('jax_disable_most_optimizations')
  assert jax.config.jax_compilation_cache_dir == os.environ['JAX_COMPILATION_CACHE_DIR']


@pytest.mark.slow
def test_slow_tests_are_optimised():
  assert not jax.config.read('jax_disable_most_optimizations')
  assert os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] == '0'


def test_no_test_begins_after_the_given_time(request, monkeypatch):
  for until in ('inf', '9e9'):
    monkeypatch.setenv('TESTS_UNTIL', until)
    conftest.pytest_runtest_setup(request.node)
  monkeypatch.setenv('TESTS_UNTIL', '1e9')
  with pytest.raises(pytest.skip.Exception, match='out of time'):
    conftest.pytest_runtest_setup(request.node)


@pytest.mark.parametrize('kind', [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
@pytest.mark.parametrize('module', ['diffusion_jax.data.packed', 'configs.base', 'optax._src.base'])
def test_a_deprecated_call_of_ours_fails(kind, module):
  with pytest.raises(kind):
    warnings.warn_explicit('gone in the next release', kind, 'file.py', 1, module=module)


def test_every_requirement_has_an_upper_bound():
  files = (ROOT / 'requirements.txt').read_text().splitlines()
  files = [line.removeprefix('-r ') for line in files if line.startswith('-r ')]
  lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
  required = [line for line in lines if line and not line.startswith('#')]
  assert required
  assert [line for line in required if not re.match(r'[\w-]+>=[\d.]+,<[\d.]+', line)] == []
