"""Sample numbers and a checkpoint's parameters -> parts of a sample set, a batch at a time."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.samplers.base import SamplingState
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.guide import Guide
from diffusion_jax.reporting.tables import quantity
from diffusion_jax.runtime import hosts, mesh, xla_options
from diffusion_jax.runtime.cost import free_bytes
from diffusion_jax.runtime.patience import alive
from diffusion_jax.sampling import sample_set
from diffusion_jax.sampling.pictures import draw_animation, picture_indices
from diffusion_jax.training.state import Weights
from diffusion_jax.types import PyTree

COMPILED = 16  # Samples a device, and twice as many, of the programs whose memory is counted.
SHARE_OF_FREE = 0.8  # The compiler's count leaves out gaps between arrays, and what else runs.


def size_of_batches(experiment: Experiment, count: int) -> int:
  """The samples of a batch for `count` samples: as few as give no more batches than sample.batch_size.

  A sample does not depend on it, so little is computed in vain. sample.batch_size 0: as largest_batch.
  """
  batches = -(-count // (experiment.config.sample.batch_size or largest_batch(experiment, count)))
  return mesh.round_up(-(-count // batches), experiment.mesh)


def largest_batch(experiment: Experiment, count: int) -> int:
  """The most samples at once, up to `count`, whose programs fit into what is free of a device's memory.

  A power of two times the devices that share a batch. Memory grows linearly with the batch, but for small
  ones, so programs of two sizes tell. Raises: InputError where the device does not say how much it has.
  """
  least = mesh.round_up(1, experiment.mesh)
  free = hosts.from_first(free_bytes)  # The same for all.
  if not free:
    raise InputError(
      'config.sample.batch_size: got 0, which asks for the largest that fits, but this device does not say '
      'how much memory it has; give a number'
    )
  tried = least * COMPILED
  # A guide, which is loaded already, needs no more than the rows without labels.
  generator = dataclasses.replace(experiment.generator(), autoguided=False)
  one, two = (
    compile_programs(experiment, generator, size).bytes_per_device() for size in (tried, 2 * tried)
  )
  size = least
  while size < count and one + (two - one) * (2 * size / tried - 1) <= SHARE_OF_FREE * free:
    size *= 2
  hosts.say(
    f'the largest batch that fits: {size:,} samples, {quantity(free, "B")} of a device are free'
  )
  return size


def generate_parts(
  experiment: Experiment,
  folder: Path,
  weights: Weights,
  missing: np.ndarray,
  animated: bool,
  guide: Guide | None = None,
) -> float:
  """Writes this process's part of every batch. Returns: images/s of all, compiling aside.

  A batch is decoded, fetched and written while the devices work on the next.
  """
  sample, sharding = experiment.config.sample, mesh.batch_sharding(experiment.mesh)
  size = size_of_batches(experiment, sample.num_samples)
  rows = mesh.local_rows(experiment.mesh, size)
  picture = picture_indices(experiment, limit=size)
  wanted = np.zeros(sample.num_samples, bool)
  wanted[missing] = True
  batches = batches_to_make(picture.reshape(-1), wanted, size, animated)
  generator = experiment.generator(sample.gif_frames, picture.size)
  generate = compile_generate(experiment, generator, size, guide)
  seconds, count = 0.0, sum(map(len, batches))
  bar = tqdm(
    total=sample.num_samples,
    initial=sample.num_samples - count,
    unit='image',
    desc='sampling',
    mininterval=5,
    miniters=0,
    disable=not hosts.is_first(),
  )

  def progress(done):
    bar.set_postfix_str(f'step {done:,} of {sample.num_steps:,}', refresh=False)
    bar.update(0)

  def write(made, index, labels, new):
    own, images = hosts.own_rows(made)  # Waits for them.
    kept = new[own]
    sample_set.save_part(folder, index[own][kept], images[kept], labels[own][kept])

  with bar, ThreadPoolExecutor(1) as writer:
    writing = None
    for batch in batches:
      index = np.pad(batch, (0, size - len(batch)), 'edge')
      labels = experiment.sample_labels(index)
      new = wanted[index] & (np.arange(size) < len(batch))
      began = time.perf_counter()
      with alive(f'sampling a batch of {size:,} in {sample.num_steps:,} steps'):
        placed = mesh.to_devices((index[rows], labels[rows]), sharding)
        made, frames = generate(weights, *placed, progress)
      if writing:
        writing.result()
      writing = writer.submit(write, made, index, labels, new)
      seconds += time.perf_counter() - began
      if not animated:
        with alive('drawing the animation'):
          draw_animation(experiment, folder, weights.scaling, frames, picture)
        animated = True
      bar.update(len(batch))
    began = time.perf_counter()
    if writing:
      writing.result()
    seconds += time.perf_counter() - began
  return len(batches) * size / seconds


def batches_to_make(
  picture: np.ndarray, wanted: np.ndarray, size: int, animated: bool
) -> Sequence[np.ndarray]:
  """Sample numbers, a batch at a time: every batch with a wanted sample; the picture's if it lacks.

  The picture's samples come first, then all others. Where a sample lies in its batch depends on
  these sizes alone, not on what is there already, so a set can be finished bit for bit.
  picture: (n,) uint32, n <= size. wanted: (num_samples,) bool.
  """
  others = np.setdiff1d(np.arange(len(wanted), dtype=np.uint32), picture)
  order = np.concatenate([picture, others])
  batches = np.split(order, range(size, len(order), size))
  return [b for k, b in enumerate(batches) if wanted[b].any() or (k == 0 and not animated)]


class Programs(NamedTuple):
  """The compiled programs of sampling one batch: noise of the indices, its state, some steps, the images."""

  draw: Callable
  start: Callable
  advance: Callable
  finish: Callable
  runs: Sequence[PyTree]

  def bytes_per_device(self) -> int:
    """The memory that the larger of the last two needs on a device, weights included."""
    counted = [program.memory_analysis() for program in (self.advance, self.finish)]
    return max(
      c.argument_size_in_bytes
      + c.temp_size_in_bytes
      + c.output_size_in_bytes
      - c.alias_size_in_bytes
      for c in counted
    )


def compile_generate(
  experiment: Experiment, generator: Generator, size: int, guide: Guide | None = None
) -> Callable:
  """(weights, indices, labels, progress, noise) -> images uint8 and x_t of frames, for a batch of `size`.

  noise: standard normal (size, *x0_shape), instead of that of the indices. Images lie where their
  samples were made; of the frames every device has a copy. The steps are handed to the devices in about
  ten runs; progress is called with the number done after each. Generators that differ in their arguments
  alone share the programs.
  """
  decoder, parts = experiment.decoder, experiment.objective.network_parts
  key = (generator.kind, size, guide and guide.key)
  if key not in experiment.compiled:  # With the generator: a kind tells its parts by identity.
    experiment.compiled[key] = generator, compile_programs(experiment, generator, size, guide)
  draw, start, advance, finish, runs = experiment.compiled[key][1]
  arguments = mesh.to_devices(generator.arguments, mesh.replicated(experiment.mesh))
  others = guide and guide.parts

  def generate(weights, indices, labels, progress=None, noise=None):
    weights = weights.only(parts)
    state, done = start(draw(indices, arguments.seed) if noise is None else noise), 0
    for run in runs:
      state = advance(weights.parts, indices, labels, state, run, arguments, others)
      if progress:
        jax.block_until_ready(state.x_t)
        done += len(run.number)
        progress(done)
    return finish(decoder, weights.scaling, state.x_t), state.frames

  return generate


def compile_programs(
  experiment: Experiment, generator: Generator, size: int, guide: Guide | None = None
) -> Programs:
  """Compiles what compile_generate runs, for a batch of `size`."""
  objective = experiment.objective
  abstract = experiment.abstract_state.weights().only(objective.network_parts)
  cut, whole = mesh.batch_sharding(experiment.mesh), mesh.replicated(experiment.mesh)
  decoder, steps = experiment.decoder, generator.steps
  runs = [mesh.to_devices(run, whole) for run in steps.cut(run_length(len(steps.number)))]
  indices = jax.ShapeDtypeStruct((size,), np.uint32, sharding=cut)
  labels = jax.ShapeDtypeStruct((size,), np.int32, sharding=cut)
  noise = jax.ShapeDtypeStruct((size, *generator.shape), np.float32, sharding=cut)
  arguments = mesh.to_devices(generator.arguments, whole)
  carry = jax.tree.map(
    lambda x: cut if x.shape[:1] == (size,) else whole, jax.eval_shape(generator.start, noise).carry
  )
  states = SamplingState(cut, carry, whole)

  def advance(parts, indices, labels, state, steps, arguments, others):
    network = objective.cachable if generator.caching else objective.network
    networks = [network(parts), guide and guide.network(others)]
    return generator.advance(networks[0], indices, labels, state, steps, arguments, networks[1])

  with alive('compiling the sampler'):
    draw = jax.jit(generator.noise, out_shardings=cut).lower(indices, arguments.seed).compile()
    start = jax.jit(generator.start, out_shardings=states).lower(noise).compile()
    state = start.out_info
    advance = jax.jit(advance, out_shardings=states, donate_argnames='state')
    inputs = (indices, labels, state, runs[0], arguments, guide and guide.parts)
    advance = xla_options.compiled(advance.lower(abstract.parts, *inputs), 'the sampler')
    finish = jax.jit(experiment.to_images, out_shardings=cut)
    finish = xla_options.compiled(
      finish.lower(decoder, abstract.scaling, state.x_t), 'the way from x0 to pixels'
    )
  return Programs(draw, start, advance, finish, runs)


def run_length(num_steps: int) -> int:
  """The largest divisor of num_steps that makes ten runs or more of it, 1 if there is none."""
  return max(n for n in range(1, max(num_steps // 10, 1) + 1) if num_steps % n == 0)
