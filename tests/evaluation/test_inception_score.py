"""The Inception Score at its ends."""

import numpy as np
import pytest

from diffusion_jax.evaluation.inception_score import score


def test_inception_score_at_its_ends():
  sure = 50.0 * np.eye(4)[np.arange(40) % 4]
  assert score(sure) == pytest.approx(4)  # Each class equally often, always certain.
  assert score(np.zeros((40, 4))) == pytest.approx(1)  # Never certain.
  assert score(50.0 * np.eye(4)[np.zeros(40, int)]) == pytest.approx(1)  # Always the same class.


def test_inception_score_of_classes_that_never_occur():
  """Logits so far apart that probabilities are exactly 0: 0 log 0 is 0."""
  logits = np.where(np.eye(4)[np.arange(40) % 2] > 0, 2000.0, 0.0)
  assert score(logits) == pytest.approx(2)
