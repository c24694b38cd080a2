"""Inception Score: exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, arXiv:1606.03498, Section 4).

With the logits of another classifier than Inception it is a score of that classifier's.
"""

import dataclasses

import numpy as np
from scipy.special import log_softmax, logsumexp

from diffusion_jax.config.options import COUNT, option
from diffusion_jax.evaluation.types import FeatureSet, Metric, Sizes, with_deviation

PERMUTATION_SEED = 2020  # torch-fidelity's.


def score(logits: np.ndarray) -> float:
  """(N, C) -> a number between 1 and C."""
  log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
  log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
  return float(np.exp(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1).mean()))


@dataclasses.dataclass(frozen=True)
class InceptionScore(Metric):
  """{'inception_score', 'inception_score_std'}: mean and deviation over shuffled splits."""

  splits: int = option(10, 'Splits whose scores give mean and standard deviation.', COUNT)
  names = ('inception_score',)

  def check(self, sizes: Sizes) -> list[str]:
    """Raises: ValueError if a split would be empty."""
    if sizes.num_samples < self.splits:
      raise ValueError(f'splits: got {self.splits}, allowed up to the {sizes.num_samples} samples')
    return []

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    del reference
    if samples.logits is None:
      return {}
    count = len(samples.logits)
    order = np.random.RandomState(PERMUTATION_SEED).permutation(count)
    bounds = [i * count // self.splits for i in range(1, self.splits)]
    scores = [score(samples.logits[part]) for part in np.split(order, bounds)]
    return with_deviation('inception_score', scores)
