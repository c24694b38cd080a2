"""Network and condition -> Denoiser, with classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

The scale here is the one most codebases use, uncond + scale * (cond - uncond): 1 is no guidance
(the paper's w is scale - 1). The order is: guide, rescale, threshold or clip x0, derive eps again from x0.
A learned variance is not guided: it is that of the labelled row, as the published DiT samples. The
published DiT also guides only the first three of its four latent channels and takes the last one from
the labelled row; guide_channels does the same.

With an interval (Kynkaanniemi et al. 2024, arXiv:2404.07724) guidance acts only where
low < sigma / alpha <= high, the noise relative to the data, which is sigma in their notation. Elsewhere
the network sees the labelled rows alone. Pure noise, where alpha is 0, lies above every interval.

Autoguidance (Karras et al. 2024, arXiv:2406.02507) takes the prediction of a guide, a worse network,
with the same labels in place of that without labels.

Adaptive projected guidance (Sadat et al. 2025, arXiv:2410.02416) changes the difference of the
two predictions of x0: it adds momentum times that of the step before, shortens it to norm_threshold, and
weighs the component along the labelled x0 by `parallel`; (scale - 1) times the result is added to that x0.

Rescaling (Lin et al. 2024, arXiv:2305.08891, Section 3.4) and dynamic thresholding (Saharia et al. 2022,
arXiv:2205.11487, Section 2.3) act on x0, so that they mean the same for every prediction type; at pure noise
the v that Lin et al. rescale is -x0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.config.options import NOT_NEGATIVE, Check, option
from diffusion_jax.diffusion.process import Process
from diffusion_jax.types import Array, Condition, Denoiser, Network, NoiseLevel, Prediction

SHARE_OR_ALL = Check(lambda x: 0 <= x <= 1, '0..1')


@dataclasses.dataclass(frozen=True)
class GuidanceOptions:
  """What config.sample.guidance says of the method."""

  interval: tuple[float | int, ...] = option(
    (),
    'Guide only where sigma / alpha, the noise relative to the data, is above the first and at most the '
    'second number; (): everywhere.',
    Check(
      lambda x: not x or (len(x) == 2 and 0 <= x[0] < x[1] and math.isfinite(x[1])),
      '(), or (low, high) with 0 <= low < high',
    ),
  )
  parallel: float = option(
    1.0,
    'Weight of the part of guidance along the labelled x0, which saturates; 1 is plain guidance.',
    NOT_NEGATIVE,
  )
  norm_threshold: float = option(
    0.0, 'Largest norm of the difference that guides, over all of x0; 0: any.', NOT_NEGATIVE
  )
  momentum: float = option(
    0.0,
    'Share of the difference of the step before that is added to it; negative values steer away from it.',
    Check(lambda x: -1 < x < 1, '-1 < x < 1'),
  )
  rescale: float = option(
    0.0,
    'Share of guided x0 that is scaled to the standard deviation of the labelled x0; 0: nothing.',
    SHARE_OR_ALL,
  )
  threshold: float = option(
    0.0,
    'Dynamic thresholding instead of clipping: the quantile of |x0| that becomes 1 where it is larger; 0: '
    'none. Only in pixel space.',
    SHARE_OR_ALL,
  )


class Guidance(NamedTuple):
  """Numbers of guidance, () float32: arguments of a compiled program.

  A part that is None is turned off, in a program of its own. scale: of classifier-free guidance.
  interval: ends of sigma / alpha between which it acts. parallel, norm_threshold, momentum: of adaptive
  projected guidance. rescale: share of x0 that is rescaled. threshold: the quantile of |x0| for dynamic
  thresholding, which does not need guidance.
  """

  scale: Array | None = None
  interval: tuple[Array, Array] | None = None
  parallel: Array | None = None
  norm_threshold: Array | None = None
  momentum: Array | None = None
  rescale: Array | None = None
  threshold: Array | None = None

  @property
  def is_plain(self) -> bool:
    """Whether x0 and eps are combined alike."""
    changes = (self.parallel, self.norm_threshold, self.momentum, self.rescale)
    return all(each is None for each in changes)


def guidance_of(cfg_scale: float, options: GuidanceOptions = GuidanceOptions()) -> Guidance:
  """The numbers of a config: cfg_scale 1 turns guidance off."""
  given = Guidance(threshold=options.threshold or None)
  if cfg_scale == 1:
    return given
  return given._replace(
    scale=cfg_scale,
    interval=tuple(map(float, options.interval)) or None,
    parallel=None if options.parallel == 1 else options.parallel,
    norm_threshold=options.norm_threshold or None,
    momentum=options.momentum or None,
    rescale=options.rescale or None,
  )


def acts(level: NoiseLevel, interval: tuple[Array, Array]) -> Array:
  """Whether guidance acts at noise levels of any shape: bool of that shape."""
  low, high = interval
  return (low * level.alpha < level.sigma) & (level.sigma <= high * level.alpha)


def adapted(
  guidance: Guidance, difference: Array, cond: Array, memory: Array | None
) -> tuple[Array, Array | None]:
  """The difference (B,H,W,C) to guide by, with labelled x0 `cond`, and what the next step remembers of it.

  memory: that of the step before; without momentum it is handed on.
  """
  axes = tuple(range(1, cond.ndim))
  if guidance.momentum is not None:
    difference = memory = difference + guidance.momentum * memory
  if guidance.norm_threshold is not None:
    norm = jnp.sqrt(jnp.sum(difference**2, axes, keepdims=True))
    difference = difference * jnp.minimum(1, guidance.norm_threshold / _positive(norm))
  if guidance.parallel is not None:
    along = jnp.sum(difference * cond, axes, keepdims=True)
    along = along / _positive(jnp.sum(cond**2, axes, keepdims=True)) * cond
    difference = difference + (guidance.parallel - 1) * along
  return difference, memory


def _positive(x: Array) -> Array:
  """Not negative -> what can be divided by."""
  return jnp.maximum(x, jnp.finfo(x.dtype).tiny)


def rescaled(x0: Array, cond: Array, share: Array) -> Array:
  """x0 (B,H,W,C), a share of it scaled to the standard deviation that each example's cond has.

  Lin et al. 2024, Eq. 15 and 16.
  """
  axes = tuple(range(1, x0.ndim))
  own, wanted = (jnp.std(x, axes, keepdims=True) for x in (x0, cond))
  return x0 * (share * wanted / _positive(own) + 1 - share)


def thresholded(x0: Array, quantile: Array) -> Array:
  """x0 (B,H,W,C) clipped to [-s, s] and divided by s, the quantile of each example's |x0|, at least 1."""
  s = jnp.quantile(jnp.abs(x0), quantile, axis=tuple(range(1, x0.ndim)), keepdims=True)
  s = jnp.maximum(s, 1)
  return jnp.clip(x0, -s, s) / s


# (x_t, t, memory) -> prediction, memory: that of the step before; None for guidance without momentum.
RememberingDenoiser = Callable[[Array, Array, Any], tuple[Prediction, Any]]


def make_denoiser(
  network: Network, process: Process, condition: Condition, *, guidance: Guidance, **settings: Any
) -> Denoiser:
  """As make_remembering, of guidance without momentum. Raises: ValueError for momentum."""
  if guidance.momentum is not None:
    raise ValueError(f'momentum: got {guidance.momentum}, allowed none: there is no memory')
  denoise = make_remembering(network, process, condition, guidance=guidance, **settings)
  return lambda x_t, t: denoise(x_t, t, None)[0]


def make_remembering(
  network: Network,
  process: Process,
  condition: Condition,
  *,
  null_label: int,
  guidance: Guidance,
  clip_x0: bool,
  guide_channels: int = 0,
  guide: Network | None = None,
) -> RememberingDenoiser:
  """A denoiser for a batch with this condition; null_label stands for "no class".

  No guidance costs one forward pass; with it there is one pass over a doubled batch, in which each
  example's two rows are neighbours, so that a batch sharded over devices stays where it is. With an interval
  t must be a scalar, and only the pass that is needed there is made.
  guide_channels: how many of the first channels are guided; 0: all. The others are the labelled row's.
  guide: the network of autoguidance, one pass of its own instead of the rows without labels.
  """

  def with_x0(x0: Array, prediction: Prediction, x_t: Array, t: Array) -> Prediction:
    n = process.level(t, x_t)
    return Prediction(x0, (x_t - n.alpha * x0) / n.sigma, prediction.variance)

  def combined(cond: Array, uncond: Array) -> Array:
    return with_rest(first(uncond) + guidance.scale * (first(cond) - first(uncond)), cond)

  def first(x: Array) -> Array:
    return x[..., :guide_channels] if guide_channels else x

  def with_rest(x: Array, cond: Array) -> Array:
    return jnp.concatenate([x, cond[..., guide_channels:]], axis=-1) if guide_channels else x

  def plain(x_t: Array, t: Array) -> Prediction:
    return process.to_prediction(process.apply(network, x_t, t, condition), x_t, t)

  def both(x_t: Array, t: Array) -> tuple[Prediction, Prediction]:
    if guide is not None:
      output = process.apply(guide, x_t, t, condition)
      return plain(x_t, t), process.to_prediction(output, x_t, t)
    labels = condition['label']
    pairs = {name: jnp.repeat(values, 2, axis=0) for name, values in condition.items()}
    pairs['label'] = jnp.stack([labels, jnp.full_like(labels, null_label)], axis=1).reshape(-1)
    output = process.apply(network, jnp.repeat(x_t, 2, axis=0), t, pairs)
    output = output.reshape(x_t.shape[0], 2, *output.shape[1:])  # (B,2,H,W,C)
    cond, uncond = (process.to_prediction(output[:, row], x_t, t) for row in range(2))
    return cond, uncond

  def guided(x_t: Array, t: Array, memory: Array | None) -> tuple[Prediction, Array | None]:
    cond, uncond = both(x_t, t)
    if guidance.is_plain:
      x0, eps = combined(cond.x0, uncond.x0), combined(cond.eps, uncond.eps)
      return Prediction(x0, eps, cond.variance), memory
    wanted = first(cond.x0)
    difference, memory = adapted(guidance, wanted - first(uncond.x0), wanted, memory)
    x0 = wanted + (guidance.scale - 1) * difference
    if guidance.rescale is not None:
      x0 = rescaled(x0, wanted, guidance.rescale)
    return with_x0(with_rest(x0, cond.x0), cond, x_t, t), memory

  def bounded(prediction: Prediction, x_t: Array, t: Array) -> Prediction:
    if guidance.threshold is not None:
      return with_x0(thresholded(prediction.x0, guidance.threshold), prediction, x_t, t)
    if clip_x0:
      return with_x0(jnp.clip(prediction.x0, -1, 1), prediction, x_t, t)
    return prediction

  def unguided(x_t: Array, t: Array, memory: Array | None) -> tuple[Prediction, Array | None]:
    return plain(x_t, t), memory

  def denoise(x_t: Array, t: Array, memory: Array | None) -> tuple[Prediction, Array | None]:
    if guidance.scale is None:
      prediction, memory = unguided(x_t, t, memory)
    elif guidance.interval is None:
      prediction, memory = guided(x_t, t, memory)
    else:
      inside = acts(process.schedule(t), guidance.interval)
      prediction, memory = jax.lax.cond(inside, guided, unguided, x_t, t, memory)
    return bounded(prediction, x_t, t), memory

  return denoise
