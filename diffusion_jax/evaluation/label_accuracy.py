"""Share of samples that a classifier gives the label that they were made for."""

import dataclasses

import numpy as np

from diffusion_jax.evaluation.types import FeatureSet, Metric


@dataclasses.dataclass(frozen=True)
class LabelAccuracy(Metric):
  """{'label_accuracy'} in 0..1; nothing without class logits, or for an unconditional model."""

  names = ('label_accuracy',)

  def __call__(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    del reference
    if samples.logits is None or samples.labels is None:
      return {}
    return {'label_accuracy': float(np.mean(samples.logits.argmax(axis=1) == samples.labels))}
