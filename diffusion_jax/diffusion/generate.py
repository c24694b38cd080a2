"""Sample numbers and labels -> x_0: noise, denoiser and sampling loop put together.

Sample number i depends on (seed, i), its label and the settings, never on the batch it is made in.
"""

import dataclasses

import numpy as np

from diffusion_jax.diffusion.guidance import make_denoiser
from diffusion_jax.diffusion.losses import Network
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers.base import run_sampler
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from diffusion_jax.types import Array, Sampler


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
  """Everything static about sampling. times: (N+1,), noise first; shape: (H, W, C)."""

  process: Process
  sampler: Sampler
  times: np.ndarray
  shape: tuple[int, int, int]
  seed: int
  null_label: int
  cfg_scale: float
  clip_x0: bool
  guide_channels: int = 0
  num_frames: int = 0
  frame_examples: int = 0

  def __call__(self, network: Network, indices: Array, labels: Array) -> tuple[Array, Array]:
    """indices (B,) uint32, labels (B,) int32 -> x_0 (B,H,W,C) float32 and frames.

    frames: (num_frames, min(frame_examples, B), H,W,C), noise first.
    """
    keys = example_keys(purpose_key(self.seed, 'sample'), indices)
    x_T = normal_each(fold_in_each(keys, 0), self.shape)
    denoise = make_denoiser(
      network,
      self.process,
      labels,
      null_label=self.null_label,
      cfg_scale=self.cfg_scale,
      clip_x0=self.clip_x0,
      guide_channels=self.guide_channels,
    )
    return run_sampler(
      self.sampler,
      denoise,
      x_T,
      fold_in_each(keys, 1),
      self.times,
      num_frames=self.num_frames,
      frame_examples=min(self.frame_examples, len(labels)),
    )
