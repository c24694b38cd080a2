"""The denoising loss: x0, t, eps -> x_t -> network -> weighted squared error, in this order.

With learned variance a share of the variational bound is added in training (Nichol & Dhariwal 2021,
arXiv:2102.09672, Eq. 16, L_hybrid = L_simple + lambda L_vlb). L_vlb is a sum over T timesteps, which
T times the term of one uniform timestep estimates.
"""

import dataclasses
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.config.options import (
  IN_TRAINING,
  NOT_NEGATIVE,
  POSITIVE,
  SHARE,
  one_of,
  option,
  require_options,
)
from diffusion_jax.diffusion import variational_bound
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.time_sampling.uniform import Uniform
from diffusion_jax.objectives.base import Context, gradients_of, x0_of
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from diffusion_jax.training.objective import Batch, Draws, DropoutDraws, Objective
from diffusion_jax.types import Array, CachableNetwork, Condition, Network, PyTree, TimeSampling


@dataclasses.dataclass(frozen=True)
class Denoising:
  """Mean squared error of the network's target (Ho et al. 2020, arXiv:2006.11239, Eq. 14).

  Class dropout is that of Ho & Salimans 2022, arXiv:2207.12598, Algorithm 1. vlb_weight, the lambda of
  Eq. 16, counts with learned variance alone, where it is all that trains the variance.
  """

  class_dropout: float = option(
    0.1, 'Share of labels hidden in training; guidance needs more than 0.', SHARE, IN_TRAINING
  )
  weighting: str = option(
    'none', 'Weighting of the loss over time.', one_of('none', 'min_snr'), IN_TRAINING
  )
  min_snr_gamma: float = option(5.0, "Gamma of the weighting 'min_snr'.", POSITIVE, IN_TRAINING)
  vlb_weight: float = option(
    0.001,
    'Weight of the variational bound; used only with process.learned_variance.',
    NOT_NEGATIVE,
    IN_TRAINING,
  )

  def __post_init__(self):
    require_options(self)

  def loss(
    self,
    network: Network,
    x0: Array,
    condition: Condition,
    keys: Array,
    *,
    process: Process,
    null_label: int,
    time_sampling: TimeSampling | None = None,
    train: bool = True,
  ) -> Array:
    """x0 (B,H,W,C) float32 in [-1, 1] or latents, keys (B,) -> (B,) float32.

    null_label stands for "no class"; 0 is a model without classes. time_sampling: uniform if not given.
    train: with class dropout, weighting and the variational bound.
    """
    t_keys, eps_keys, drop_keys = (fold_in_each(keys, purpose) for purpose in range(3))
    schedule, time_sampling = process.schedule, time_sampling or Uniform()
    t = schedule.snap(jax.vmap(lambda key: time_sampling(key, (), schedule))(t_keys))  # (B,)
    eps = normal_each(eps_keys, x0.shape[1:])
    if train and self.class_dropout > 0 and null_label:
      dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.class_dropout))(drop_keys)
      labels = jnp.where(dropped, null_label, condition['label'])
      condition = {**condition, 'label': labels}
    x_t = process.corrupt(x0, eps, t)
    output = process.apply(network, x_t, t, condition).astype(jnp.float32)
    prediction, fraction = process.split(output)
    error = jnp.square(prediction - process.target(x0, eps, t))
    loss = jnp.mean(error, axis=range(1, error.ndim))  # (B,)
    if train and self.weighting == 'min_snr':
      loss = loss * process.min_snr_weight(t, self.min_snr_gamma)
    if train and fraction is not None:
      mean_x0 = jax.lax.stop_gradient(process.to_prediction(output, x_t, t).x0)
      term = variational_bound.term(schedule, x0, x_t, t, mean_x0, fraction)  # (B,)
      loss = loss + self.vlb_weight * schedule.num_timesteps * term
    return loss

  def build(self, context: Context) -> Objective:
    """The objective of a run: one model, its loss, and one average."""
    model = context.make_model()
    settings = dict(
      process=context.process,
      null_label=context.num_classes,
      time_sampling=context.time_sampling,
    )

    def losses(parts, state, frozen, batch: Batch, draws: Draws):
      del frozen
      x0 = x0_of(batch, state.scaling, draws.keys, flip=context.flip)
      network = network_of(model, parts['model'], draws.dropout)
      keys, condition = fold_in_each(draws.keys, 1), {'label': batch['label']}
      return self.loss(network, x0, condition, keys, train=True, **settings), {}

    def holdout(parts, frozen, scaling, batch: Batch):
      """Noise and time depend on the number of an example alone: steps can be compared."""
      del frozen
      keys = example_keys(purpose_key(context.seed, 'holdout'), batch['index'].astype(jnp.uint32))
      x0 = x0_of(batch, scaling, fold_in_each(keys, 3), flip=False)  # The loss folds in 0 to 2.
      network, condition = network_of(model, parts['model']), {'label': batch['label']}
      found = self.loss(network, x0, condition, keys, train=False, **settings)
      valid = batch['index'] >= 0
      return {'loss': jnp.sum(jnp.where(valid, found, 0)), 'count': jnp.sum(valid)}

    return Objective(
      init=lambda: {'model': initial_params(model, context)},
      gradients=gradients_of(losses),
      optimizers={'model': context.make_optimizer()},
      forward=lambda parts, *inputs: network_of(model, parts['model'])(*inputs),
      forward_inputs=lambda size: (
        jax.ShapeDtypeStruct((size, *context.x0_shape), jnp.float32),
        jax.ShapeDtypeStruct((size,), jnp.float32),
        {'label': jax.ShapeDtypeStruct((size,), jnp.int32)},
      ),
      holdout=holdout,
      holdout_metrics=('loss',),
      averages={'ema': context.ema()},
      network=lambda parts: network_of(model, parts['model']),
      cachable=(lambda parts: cachable_of(model, parts['model'])) if is_cachable(model) else None,
      guided=self.class_dropout > 0,
    )


def network_of(
  model: nn.Module,
  params: PyTree,
  dropout: DropoutDraws | None = None,
  hidden: list[Array] | None = None,
) -> Network:
  """A backbone with these parameters; dropout is on if its draws are given.

  hidden: a list to which each call appends the hidden states, (depth, B, N, d) of a DiT and
  (B, h, w, c), from the middle, of a UNet.
  """
  options = {'train': False, 'rngs': {}}
  if dropout is not None:
    options = {'train': True, 'rngs': {'dropout': dropout.key}}
    if 'rows' in inspect.signature(type(model).__call__).parameters:
      options['rows'] = dropout.rows

  def apply(x, time, condition):
    mutable = False if hidden is None else ['intermediates']
    out = model.apply({'params': params}, x, time, condition, mutable=mutable, **options)
    if hidden is None:
      return out
    out, kept = out
    hidden.extend(jax.tree.leaves(kept))
    return out

  return apply


def is_cachable(model: nn.Module) -> bool:
  """Whether the model takes the residual of its blocks, as a DiT."""
  return 'residual' in inspect.signature(type(model).__call__).parameters


def cachable_of(model: nn.Module, params: PyTree) -> CachableNetwork:
  """A backbone with these parameters that can do without its blocks."""

  def apply(x, time, condition, residual):
    inputs = ({'params': params}, x, time, condition)
    output, kept = model.apply(*inputs, residual=residual, mutable=['residuals'])
    return output, kept['residuals']['residual'] if residual is None else residual

  return apply


def initial_params(model: nn.Module, context: Context, *conditions: str) -> PyTree:
  """A backbone's parameters at step 0; conditions: names of those beside the label."""
  x = jnp.zeros((1, *context.x0_shape), jnp.float32)
  condition = {'label': jnp.zeros(1, jnp.int32), **{name: jnp.zeros(1) for name in conditions}}
  return model.init(purpose_key(context.seed, 'init'), x, jnp.zeros(1), condition)['params']
