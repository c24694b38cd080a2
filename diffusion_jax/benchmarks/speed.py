"""Measures training, sampling, autoencoder and features on random numbers, against the limits of the device.

Needs neither data nor weights. FLOPs are those of matrix products and convolutions (runtime/cost.py), three
times those of a pass forward for a training step; MFU is their share of the device's peak (runtime/chips.py).
The floor is the time that the operations, or the bytes of the parameters that have to move, take at the least.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.benchmarks.timing import steady_seconds
from diffusion_jax.config.options import at_least, option
from diffusion_jax.data.prepare import cores
from diffusion_jax.diffusion.pixels import from_uint8, to_uint8
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.facts import autoencoder_facts
from diffusion_jax.models.inception import InceptionV3
from diffusion_jax.reporting.tables import NOTHING, quantity, table
from diffusion_jax.runtime import chips, cost, mesh
from diffusion_jax.sampling.generation import compile_generate, size_of_batches
from diffusion_jax.types import PyTree

HEADER = ('', 'batch', 'compile', 'time', 'range', 'images/s', 'a device', 'FLOP/s', 'MFU')
HEADER += ('of the floor', 'peak memory')
CPU_IMAGES = 8  # Of feature extraction at once: more are slower there.
PARTS = ('train', 'sample', 'autoencoder', 'features')
HALVES = 2  # An autoencoder encodes with one half of its parameters and decodes with the other.


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """What is measured: compiled, with what it costs.

  run: does it once, and returns arrays to wait for. batch_size: images a run. compile_seconds: of the programs
  of run. flops: in all, a run. moved_bytes: on one device, a run.
  """

  run: Callable[[], PyTree]
  batch_size: int
  compile_seconds: float
  flops: float
  moved_bytes: float


@dataclasses.dataclass(frozen=True, eq=False)
class Speed:
  """Training, sampling, autoencoder and features."""

  on_data: ClassVar = False
  in_one_process: ClassVar = False
  experiment: Experiment
  repeats: int
  parts: tuple[str, ...] = option(PARTS, 'What is measured, of these four.')
  seconds: float = option(1.0, 'Least seconds of each measurement.', at_least(0))
  feature_batch: int = option(0, 'Images of feature extraction at once; 0: 8 on CPU, else 100.')

  def __post_init__(self):
    unknown = sorted(set(self.parts) - set(PARTS))
    if unknown:
      raise ValueError(f'parts: got {", ".join(unknown)}, allowed {", ".join(PARTS)}')

  def measure(self, folder: Path) -> dict[str, Any]:
    """Measures each part, with `repeats` measurements after a first run."""
    del folder
    size = max(self.experiment.config.train.batch_size, 2)
    experiment, results = with_random_inputs(self.experiment, size), {}
    peaks = {d: chips.limits(d) for d in {experiment.dtype, jnp.float32}}
    for name in self.parts:
      dtype = jnp.float32 if name == 'features' else experiment.dtype
      for title, make in self._makers(name, experiment):
        print(f'measuring {title}', flush=True)
        part = make()
        times = self._times(part.run)
        results[title] = {
          **{name: getattr(part, name) for name in COUNTED},
          'times': times,
          'images_per_s': part.batch_size / float(np.median(times)),
          'peak_bytes': (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use'),
          'limits': peaks[dtype]._asdict(),
          'dtype': jnp.dtype(dtype).name,
        }
        del part
        jax.clear_caches()
    return results

  def _makers(self, name: str, experiment: Experiment) -> 'Makers':
    if name == 'features':
      default = CPU_IMAGES if jax.default_backend() == 'cpu' else 100
      return feature_parts(experiment, self.feature_batch or default)
    parts = {'train': train_parts, 'sample': sample_parts, 'autoencoder': autoencoder_parts}
    return parts[name](experiment)

  def _times(self, run: Callable[[], PyTree]) -> list[float]:
    jax.block_until_ready(run())
    once = functools.partial(steady_seconds, run, jax.block_until_ready, self.seconds)
    return [once() for _ in range(self.repeats)]

  def report(self, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Makes the table."""
    devices = self.experiment.mesh.size
    lines = [f'\n{devices} {jax.devices()[0].device_kind}, {cores()} cores of this host']
    known = {r['dtype']: r['limits'] for r in results.values()}
    lines += [
      f'peak of a device in {dtype}: {quantity(limits["flops_per_s"], "FLOP/s")}, '
      f'{quantity(limits["bytes_per_s"], "B/s")} ({limits["source"]})'
      for dtype, limits in known.items()
    ]
    rows = [_row(title, result, devices) for title, result in results.items()]
    return '\n'.join(lines) + f'\n\n{table(HEADER, rows)}\n'


COUNTED = ('batch_size', 'compile_seconds', 'flops', 'moved_bytes')


def _row(title: str, result: Mapping[str, Any], devices: int) -> list[str]:
  times, limits = result['times'], result['limits']
  median, peak = float(np.median(times)), result['peak_bytes']
  rate = result['flops'] / median
  floor = max(
    result['flops'] / limits['flops_per_s'] / devices, result['moved_bytes'] / limits['bytes_per_s']
  )
  return [
    title,
    f'{result["batch_size"]:,}',
    f'{result["compile_seconds"]:.1f} s',
    _time(median),
    f'{_time(min(times))} .. {_time(max(times))}',
    f'{result["images_per_s"]:.4g}',
    f'{result["images_per_s"] / devices:.4g}',
    quantity(rate),
    f'{rate / devices / limits["flops_per_s"]:.0%}',
    f'{median / floor:.3g}x',
    quantity(peak, 'B') if peak else NOTHING,
  ]


def _time(value: float) -> str:
  return f'{value:.3g} s' if value >= 1 else f'{1e3 * value:.3g} ms'


Makers = Iterator[tuple[str, Callable[[], Part]]]


def train_parts(experiment: Experiment) -> Makers:
  """One step: forward, backward, update."""

  def make():
    size = experiment.config.train.batch_size
    state = experiment.initial_state()
    rows = mesh.local_rows(experiment.mesh, size)
    batch = experiment.train_data.read(rows % experiment.train_data.num_examples)
    batch = mesh.to_devices(batch, mesh.batch_sharding(experiment.mesh))
    began = time.perf_counter()
    step = experiment.compile_steps(0)
    compiling = time.perf_counter() - began

    def run():
      nonlocal state
      state, metrics = step(1, state, batch)
      return metrics['loss']

    # Parameters, optimizer and averages are read and written, gradients written and read.
    moved = 2 * _local_bytes(state) + 2 * _local_bytes(state.params)
    return Part(run, size, compiling, 3 * size * forward_flops(experiment), moved)

  yield 'training step', make


def sample_parts(experiment: Experiment) -> Makers:
  """A batch of samples from noise to pixels, without guidance and, where it can be, with that of the config."""
  if not experiment.objective.network:
    return
  sample = experiment.config.sample
  size = size_of_batches(experiment, sample.batch_size or sample.num_samples)

  def make(scale):
    changed = dataclasses.replace(sample, cfg_scale=scale)
    config = dataclasses.replace(experiment.config, sample=changed)
    guided = dataclasses.replace(experiment, config=config)
    vars(guided).update(vars(experiment) | {'config': config})
    began = time.perf_counter()
    generator = dataclasses.replace(guided.generator(), autoguided=False)
    generate = compile_generate(guided, generator, size)
    compiling = time.perf_counter() - began
    weights = experiment.initial_state().weights()
    rows, cut = mesh.local_rows(experiment.mesh, size), mesh.batch_sharding(experiment.mesh)
    index = np.arange(size, dtype=np.uint32)
    inputs = mesh.to_devices((index[rows], experiment.sample_labels(index)[rows]), cut)
    decode = autoencoder_facts(experiment).get('decode_flops_per_image', 0)
    flops = size * (generator.evaluations() * forward_flops(experiment) + decode)
    calls = generator.sampler.evaluations(sample.num_steps)
    moved = calls * _local_bytes(weights.parts)
    return Part(lambda: generate(weights, *inputs)[0], size, compiling, flops, moved)

  yield f'{sample.num_steps} steps of sampling', functools.partial(make, 1.0)
  if experiment.config.num_classes and experiment.objective.guided:
    scale = sample.cfg_scale if sample.cfg_scale != 1 else 2.0
    yield f'the same, guidance {scale:g}', functools.partial(make, scale)


def autoencoder_parts(experiment: Experiment) -> Makers:
  """Images to the posterior's mean, and latents to images."""
  if not experiment.is_latent:
    return
  size = mesh.round_up(experiment.config.vae.batch_size, experiment.mesh)
  module, counted = experiment.autoencoder, autoencoder_facts(experiment)
  cut = mesh.batch_sharding(experiment.mesh)

  def encode(params, images):
    return module.apply({'params': params}, from_uint8(images), method='encode').mean

  def decode(params, z):
    return to_uint8(module.apply({'params': params}, z, method='decode'))

  def make(function, name, shape, dtype):
    params = mesh.to_devices(experiment.first_stage.params, mesh.replicated(experiment.mesh))
    rows = mesh.local_rows(experiment.mesh, size)
    values = np.random.default_rng(0).standard_normal((len(rows), *shape))
    scaled = (50 * values + 128).clip(0, 255) if dtype == np.uint8 else values
    x = mesh.to_devices(scaled.astype(dtype), cut)
    began = time.perf_counter()
    program = jax.jit(function, out_shardings=cut).lower(params, x).compile()
    compiling = time.perf_counter() - began
    flops = size * counted[f'{name}_flops_per_image']
    return Part(lambda: program(params, x), size, compiling, flops, _local_bytes(params) / HALVES)

  yield 'encoding', functools.partial(make, encode, 'encode', experiment.image_shape, np.uint8)
  yield 'decoding', functools.partial(make, decode, 'decode', experiment.x0_shape, np.float32)


def feature_parts(experiment: Experiment, batch_size: int) -> Makers:
  """The network of FID, in float32."""

  def make():
    network, shape = InceptionV3(), experiment.image_shape
    size = mesh.round_up(batch_size, experiment.mesh)
    cut, whole = mesh.batch_sharding(experiment.mesh), mesh.replicated(experiment.mesh)
    images = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
    x = mesh.to_devices(images[mesh.local_rows(experiment.mesh, size)], cut)
    init = jax.jit(
      lambda: network.init(jax.random.key(0), images[:1])['params'], out_shardings=whole
    )
    params = init()

    def apply(params, images):
      return network.apply({'params': params}, images)

    began = time.perf_counter()
    program = jax.jit(apply, out_shardings=whole).lower(params, x).compile()
    compiling = time.perf_counter() - began
    one = jax.ShapeDtypeStruct((1, *shape), np.uint8)
    flops = size * cost.flops(apply, params, one)
    return Part(lambda: program(params, x), size, compiling, flops, _local_bytes(params))

  yield 'features of Inception', make


def forward_flops(experiment: Experiment) -> int:
  """Counts the operations of one image forward."""
  objective = experiment.objective
  parts = experiment.abstract_state.weights().only(objective.network_parts).parts
  return cost.flops(objective.forward, parts, *objective.forward_inputs(1))


def _local_bytes(tree: PyTree) -> int:
  """Counts the bytes on one device."""
  return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))
