"""One training step and one evaluation step, as pure functions."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.diffusion.losses import DenoisingLoss
from diffusion_jax.diffusion.pixels import from_uint8
from diffusion_jax.models.latents import Scaling
from diffusion_jax.models.vae import Posterior
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from diffusion_jax.training.state import TrainState, ema_decay_at
from diffusion_jax.types import Array, Network, PyTree

# label (B,) int32, and image (B,H,W,C) uint8 or posterior (B,h,w,2c) float16
Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
  """The static parts of training. Every draw is a function of (seed, step, position in the batch)."""

  module: nn.Module
  loss: DenoisingLoss
  optimizer: optax.GradientTransformation
  ema_decay: float
  flip: bool
  seed: int

  def network(self, params: PyTree, dropout_key: Array | None = None) -> Network:
    """The backbone with these parameters; dropout is on if a key is given."""
    rngs = {} if dropout_key is None else {'dropout': dropout_key}

    def apply(x, time, condition):
      return self.module.apply({'params': params}, x, time, condition, train=bool(rngs), rngs=rngs)

    return apply

  def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
    """Loss, gradient, update, average. A non-finite loss, gradient or result leaves all of them as they were.

    Returns: the next state, and () float32 loss and grad_norm, () int32 skipped.
    """
    key = jax.random.fold_in(purpose_key(self.seed, 'train'), state.step)
    keys = example_keys(key, jnp.arange(len(batch['label']), dtype=jnp.uint32))  # (B,)
    x0 = self.x0(batch, state.scaling, keys, flip=self.flip)
    dropout_key = jax.random.fold_in(purpose_key(self.seed, 'dropout'), state.step)

    def mean_loss(params):
      network, condition = self.network(params, dropout_key), {'label': batch['label']}
      return jnp.mean(self.loss(network, x0, condition, fold_in_each(keys, 1), train=True))

    loss, grads = jax.value_and_grad(mean_loss)(state.params)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay_at(state.step, self.ema_decay)
    ema_params = jax.tree.map(lambda e, p: e * decay + p * (1 - decay), state.ema_params, params)

    good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(params))
    params, ema_params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(good, new, old),
      (params, ema_params, opt_state),
      (state.params, state.ema_params, state.opt_state),
    )
    skipped = jnp.where(good, 0, state.skipped + 1)
    state = TrainState(state.step + 1, params, ema_params, opt_state, skipped, state.scaling)
    return state, {'loss': loss, 'grad_norm': grad_norm, 'skipped': skipped}

  def x0(self, batch: Batch, scaling: Scaling | None, keys: Array, *, flip: bool) -> Array:
    """What diffuses, (B,H,W,C) float32: images in [-1, 1], or fresh samples of normalised latents.

    keys: (B,). flip mirrors half of the images; the latents of mirrored images are examples of
    their own.
    """
    if 'posterior' in batch:
      posterior = Posterior.from_parameters(batch['posterior'])
      noise = normal_each(fold_in_each(keys, 0), posterior.mean.shape[1:])
      return scaling.normalise(posterior.sample(noise))
    x0 = from_uint8(batch['image'])
    if not flip:
      return x0
    flipped = jax.vmap(jax.random.bernoulli)(fold_in_each(keys, 0))  # (B,)
    return jnp.where(flipped[:, None, None, None], x0[:, :, ::-1], x0)

  def evaluation_step(
    self, params: PyTree, scaling: Scaling | None, batch: Batch
  ) -> tuple[Array, Array]:
    """Sum of the losses of a batch of held-out examples, and their number.

    batch['index'] (B,) int32 numbers the examples, -1 for padding; noise and time depend on it
    alone, so that the number can be compared from step to step.
    """
    keys = example_keys(purpose_key(self.seed, 'holdout'), batch['index'].astype(jnp.uint32))
    x0 = self.x0(batch, scaling, fold_in_each(keys, 3), flip=False)  # The loss folds in 0 to 2.
    losses = self.loss(
      self.network(params), x0, {'label': batch['label']}, keys, train=False
    )  # (B,)
    valid = batch['index'] >= 0
    return jnp.sum(jnp.where(valid, losses, 0)), jnp.sum(valid)
