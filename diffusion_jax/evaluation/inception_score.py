"""Inception Score: exp E KL(p(y|x) || p(y)) (Salimans et al. 2016, arXiv:1606.03498, Section 4).

With the logits of another classifier than Inception it is a score of that classifier's.
"""

import numpy as np
from scipy.special import log_softmax, logsumexp

from diffusion_jax.evaluation.types import FeatureSet, Metric

PERMUTATION_SEED = 2020


def score(logits: np.ndarray) -> float:
  """(N, C) -> a number between 1 and C."""
  log_p = log_softmax(np.asarray(logits, np.float64), axis=1)
  log_marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
  return float(np.exp(np.sum(np.exp(log_p) * (log_p - log_marginal), axis=1).mean()))


def build(*, splits: int) -> Metric:
  """{'inception_score', 'inception_score_std'}: mean and deviation over shuffled splits.

  Raises: ValueError if splits < 1.
  """
  if splits < 1:
    raise ValueError(f'splits: got {splits}, allowed >= 1')

  def metric(samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    del reference
    if samples.logits is None:
      return {}
    order = np.random.RandomState(PERMUTATION_SEED).permutation(len(samples.logits))
    scores = [score(part) for part in np.array_split(samples.logits[order], splits) if len(part)]
    return {
      'inception_score': float(np.mean(scores)),
      'inception_score_std': float(np.std(scores)),
    }

  return metric
