"""Frechet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

|mu_1 - mu_2|^2 + tr(C_1) + tr(C_2) - 2 tr((C_1^(1/2) C_2 C_1^(1/2))^(1/2)). The inner matrix is
symmetric, so its root's trace is a sum over eigenvalues, which also holds for singular covariances.
"""

import numpy as np

from diffusion_jax.evaluation.types import FeatureSet, Metric


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(N, D) -> mean (D,) and unbiased covariance (D, D), float64."""
  features = np.asarray(features, np.float64)
  return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def distance(mean_1: np.ndarray, cov_1: np.ndarray, mean_2: np.ndarray, cov_2: np.ndarray) -> float:
  """float64 moments -> the distance, never negative."""
  values, vectors = np.linalg.eigh(cov_1)
  root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
  inner = root @ cov_2 @ root
  eigenvalues = np.clip(np.linalg.eigvalsh((inner + inner.T) / 2), 0, None)
  trace = np.trace(cov_1) + np.trace(cov_2) - 2 * np.sqrt(eigenvalues).sum()
  return float(max(np.square(mean_1 - mean_2).sum() + trace, 0.0))


def build() -> Metric:
  """{'frechet_distance'} of samples against the reference."""

  def metric(samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    value = distance(*moments(samples.features), *moments(reference.features))
    return {'frechet_distance': value}

  return metric
