"""scripts/performance.py replaces its own sections of the page, and no others."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
  yield importlib.import_module('performance')
  sys.modules.pop('performance')


def test_a_section_takes_the_place_of_the_one_before(script):
  page = script.replaced('# Performance\n', 'cpu', 'DiT', 'first\n')
  page = script.replaced(page, 'TPU v4', 'DiT', 'other\n')
  page = script.replaced(page, 'cpu', 'DiT', 'sec\\ond\n')
  assert 'first' not in page and page.count('sec\\ond') == page.count('other') == 1
  assert page.index('sec\\ond') < page.index('other')


def test_the_commands_name_shipped_configs(script):
  for flags in script.RUNS.values():
    (config,) = (flag for flag in flags if flag.startswith('--config='))
    assert (ROOT / config.removeprefix('--config=')).is_file()
