"""Network and condition -> Denoiser, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

The scale here is the one most codebases use, uncond + scale * (cond - uncond): 1 is no guidance
(the paper's w is scale - 1). The order is: guide, clip x0, derive eps again from the clipped x0.
A learned variance is not guided: it is that of the labelled row, as the published DiT samples. The
published DiT also guides only the first three of its four latent channels and takes the last one from
the labelled row; guide_channels does the same.
"""

from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.diffusion.process import Process
from diffusion_jax.types import Array, Condition, Denoiser, Network, Prediction


class Guidance(NamedTuple):
  """Numbers of guidance, () float32: arguments of a compiled program.

  A part that is None is turned off, in a program of its own. scale: of classifier-free guidance.
  """

  scale: Array | None = None


def guidance_of(cfg_scale: float) -> Guidance:
  """The numbers of a config: cfg_scale 1 turns guidance off."""
  return Guidance(scale=None if cfg_scale == 1 else cfg_scale)


def make_denoiser(
  network: Network,
  process: Process,
  condition: Condition,
  *,
  null_label: int,
  guidance: Guidance,
  clip_x0: bool,
  guide_channels: int = 0,
) -> Denoiser:
  """A denoiser for a batch with this condition; null_label stands for "no class".

  No guidance costs one forward pass; with it there is one pass over a doubled batch, in which each
  example's two rows are neighbours, so that a batch sharded over devices stays where it is.
  guide_channels: how many of the first channels are guided; 0: all. The others are the labelled row's.
  """

  def guided(cond: Array, uncond: Array) -> Array:
    if not guide_channels:
      return uncond + guidance.scale * (cond - uncond)
    first, rest = jnp.split(cond, [guide_channels], axis=-1)
    without = uncond[..., :guide_channels]
    return jnp.concatenate([without + guidance.scale * (first - without), rest], axis=-1)

  def denoise(x_t: Array, t: Array) -> Prediction:
    if guidance.scale is None:
      prediction = process.to_prediction(process.apply(network, x_t, t, condition), x_t, t)
    else:
      labels = condition['label']
      pairs = {name: jnp.repeat(values, 2, axis=0) for name, values in condition.items()}
      pairs['label'] = jnp.stack([labels, jnp.full_like(labels, null_label)], axis=1).reshape(-1)
      output = process.apply(network, jnp.repeat(x_t, 2, axis=0), t, pairs)
      output = output.reshape(x_t.shape[0], 2, *output.shape[1:])  # (B,2,H,W,C)
      cond = process.to_prediction(output[:, 0], x_t, t)
      uncond = process.to_prediction(output[:, 1], x_t, t)
      prediction = Prediction(
        guided(cond.x0, uncond.x0), guided(cond.eps, uncond.eps), cond.variance
      )
    if clip_x0:
      n = process.level(t, x_t)
      x0 = jnp.clip(prediction.x0, -1, 1)
      prediction = Prediction(x0, (x_t - n.alpha * x0) / n.sigma, prediction.variance)
    return prediction

  return denoise
