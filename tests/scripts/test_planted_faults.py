"""Every planted fault still has its place: code that moves takes its fault along."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'scripts'))
  yield importlib.import_module('plant_faults')
  for name in ('plant_faults', 'planted_faults'):
    sys.modules.pop(name)


def test_every_fault_applies_and_names_tests_that_are_there(script):
  assert [fault.title for fault in script.FAULTS if not script.applies(fault)] == []
  assert all((ROOT / path).exists() for fault in script.FAULTS for path in fault.tests)
