"""A test-only objective that uses every seam: `--config.objective.name=tests.support.every_seam`.

It denoises under a further condition, a brightness that is drawn for each example, and from ALIGNED_FROM
on aligns hidden states with a frozen network's features through a projector, which has an optimizer of
its own. It keeps two averages, one of them fast.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.config.options import NOT_NEGATIVE, option, require_options
from diffusion_jax.objectives.base import Context, gradients_of, x0_of
from diffusion_jax.objectives.denoising import Denoising, initial_params, network_of
from diffusion_jax.randomness import example_keys, fold_in_each, purpose_key
from diffusion_jax.training.objective import Objective

ALIGNED_FROM = 3  # The first step of the second phase.
FEATURES = 5  # Width of the frozen network.


@dataclasses.dataclass(frozen=True)
class EverySeam:
  """Denoising, and alignment of the mean hidden state with the features of a frozen network."""

  weight: float = option(0.5, 'Weight of the alignment.', NOT_NEGATIVE)

  def __post_init__(self):
    require_options(self)

  def build(self, context: Context) -> Objective:
    base, denoising = Denoising().build(context), Denoising()
    model, projector = context.make_model(), nn.Dense(FEATURES)
    settings = dict(process=context.process, null_label=context.num_classes)

    def init():
      key = purpose_key(context.seed, 'projector')
      params = initial_params(model, context, 'brightness')
      width = hidden_of(model, params, context).shape[-1]
      return {'model': params, 'projector': projector.init(key, jnp.zeros((1, width)))['params']}

    def frozen():
      size = int(np.prod(context.image_shape))
      kernel = np.random.default_rng(0).normal(size=(size, FEATURES))
      return {'kernel': (kernel / np.sqrt(size)).astype(np.float32)}

    def losses(parts, frozen, x0, labels, keys, dropout, train):
      hidden = []
      network = network_of(model, parts['model'], dropout, hidden)
      brightness = jax.vmap(jax.random.uniform)(fold_in_each(keys, 7))  # (B,)
      condition = {'label': labels, 'brightness': brightness}
      bright = x0 * brightness[:, None, None, None]
      plain = denoising.loss(network, bright, condition, keys, train=train, **settings)
      states = hidden[0][-1].mean(axis=1)  # (B, d), the last block's.
      wanted = bright.reshape(len(x0), -1) @ frozen['kernel']  # (B, FEATURES)
      made = projector.apply({'params': parts['projector']}, states)
      return plain, jnp.mean(jnp.square(made - wanted), axis=-1)

    def all_losses(parts, state, frozen, batch, draws, *, weight):
      x0 = x0_of(batch, state.scaling, draws.keys, flip=context.flip)
      keys = fold_in_each(draws.keys, 1)
      plain, alignment = losses(parts, frozen, x0, batch['label'], keys, draws.dropout, True)
      return plain + weight * alignment, {'alignment': jnp.mean(alignment)}

    def gradients(state, frozen, batch, draws, phase):
      weight = self.weight if phase == 'aligned' else 0.0
      found, metrics = gradients_of(functools.partial(all_losses, weight=weight))(
        state, frozen, batch, draws, phase
      )
      trained = ('model', 'projector') if phase == 'aligned' else ('model',)
      return {part: found[part] for part in trained}, metrics

    def holdout(parts, frozen, scaling, batch):
      numbers = batch['index'].astype(jnp.uint32)
      keys = example_keys(purpose_key(context.seed, 'holdout'), numbers)
      x0 = x0_of(batch, scaling, fold_in_each(keys, 8), flip=False)
      found = losses(parts, frozen, x0, batch['label'], keys, None, False)
      valid = batch['index'] >= 0
      sums = [jnp.sum(jnp.where(valid, values, 0)) for values in found]
      return {'loss': sums[0], 'alignment': sums[1], 'count': jnp.sum(valid)}

    def network(parts):
      """Samples are made at full brightness."""

      def apply(x, time, condition):
        full = {**condition, 'brightness': jnp.ones(len(x))}
        return model.apply({'params': parts['model']}, x, time, full)

      return apply

    return dataclasses.replace(
      base,
      init=init,
      frozen=frozen,
      gradients=gradients,
      optimizers={'model': context.make_optimizer(), 'projector': optax.sgd(0.1)},
      averages={'ema': context.ema(), 'fast': lambda step: 0.5},
      phase=lambda step: 'aligned' if step >= ALIGNED_FROM else 'plain',
      holdout=holdout,
      holdout_metrics=('loss', 'alignment'),
      network=network,
      forward=lambda parts, *inputs: network(parts)(*inputs),
    )


def hidden_of(model, params, context):
  """The shape of the hidden states of one example."""
  x = jnp.zeros((1, *context.x0_shape))
  condition = {'label': jnp.zeros(1, jnp.int32), 'brightness': jnp.zeros(1)}
  _, kept = jax.eval_shape(
    lambda params: model.apply(
      {'params': params}, x, jnp.zeros(1), condition, mutable=['intermediates']
    ),
    params,
  )
  return jax.tree.leaves(kept)[0]
