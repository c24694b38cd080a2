"""The denoising loss: x0, t, eps -> x_t -> network -> weighted squared error, in this order.

With learned variance a share of the variational bound is added in training (Nichol & Dhariwal 2021,
arXiv:2102.09672, Eq. 16, L_hybrid = L_simple + lambda L_vlb). L_vlb is a sum over T timesteps, which
T times the term of one uniform timestep estimates.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion import variational_bound
from diffusion_jax.diffusion.process import Process
from diffusion_jax.randomness import fold_in_each, normal_each
from diffusion_jax.types import Array, Condition, Network, TimeSampling


@dataclasses.dataclass(frozen=True)
class DenoisingLoss:
  """Mean squared error of the network's target (Ho et al. 2020, Eq. 14), optionally min-SNR weighted.

  null_label stands for "no class"; class_dropout is the share of training labels replaced by it
  (Ho & Salimans 2022, arXiv:2207.12598, Algorithm 1). vlb_weight: the lambda of Eq. 16, used only
  with learned variance, where it is all that trains the variance, and nothing but that.
  """

  process: Process
  time_sampling: TimeSampling
  null_label: int
  class_dropout: float
  weighting: str
  min_snr_gamma: float
  vlb_weight: float

  def __call__(
    self, network: Network, x0: Array, condition: Condition, keys: Array, *, train: bool
  ) -> Array:
    """x0 (B,H,W,C) float32 in [-1, 1] or latents, keys (B,) -> (B,) float32."""
    t_keys, eps_keys, drop_keys = (fold_in_each(keys, purpose) for purpose in range(3))
    schedule = self.process.schedule
    t = schedule.snap(jax.vmap(lambda key: self.time_sampling(key, (), schedule))(t_keys))  # (B,)
    eps = normal_each(eps_keys, x0.shape[1:])
    if train and self.class_dropout > 0:
      dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.class_dropout))(drop_keys)
      labels = jnp.where(dropped, self.null_label, condition['label'])
      condition = {**condition, 'label': labels}
    x_t = self.process.corrupt(x0, eps, t)
    output = self.process.apply(network, x_t, t, condition).astype(jnp.float32)
    prediction, fraction = self.process.split(output)
    error = jnp.square(prediction - self.process.target(x0, eps, t))
    loss = jnp.mean(error, axis=range(1, error.ndim))  # (B,)
    if train and self.weighting == 'min_snr':
      loss = loss * self.process.min_snr_weight(t, self.min_snr_gamma)
    if train and fraction is not None:
      mean_x0 = jax.lax.stop_gradient(self.process.to_prediction(output, x_t, t).x0)
      term = variational_bound.term(schedule, x0, x_t, t, mean_x0, fraction)  # (B,)
      loss = loss + self.vlb_weight * schedule.num_timesteps * term
    return loss
