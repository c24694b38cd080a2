"""Features for the tests of metrics, drawn from one generator."""

import numpy as np

from configs import base
from diffusion_jax.config.plugins import make_plugin
from diffusion_jax.evaluation.types import FeatureSet

RNG = np.random.default_rng(0)


def metric_of(name, **changes):
  """A metric with the options of configs/base.py, and some others."""
  options = dict(base.get_config().eval.get(name, {}))
  return make_plugin('evaluation', name, **{**options, **changes})


def only(array):
  """Features alone."""
  return FeatureSet(np.asarray(array), None, None)
