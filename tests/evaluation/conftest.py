"""What the tests of metrics share."""

import numpy as np
import pytest

from tests.support.features import RNG


@pytest.fixture(autouse=True)
def same_numbers():
  """Every test draws the same, whichever ran before it."""
  RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state
