"""docs/reliability.md names tests that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
  r'^\|.*`(tests/\S+\.py)(?: -k ([\w-]+))?[^`]*`', (ROOT / 'docs/reliability.md').read_text(), re.M
)


@pytest.mark.parametrize(('file', 'name'), ROWS)
def test_commands_select_tests(file, name):
  names = re.findall(r'^def (test_\w+)', (ROOT / file).read_text(), re.M)
  assert any(name in test for test in names)


def test_there_are_rows():
  assert len(ROWS) >= 3
