"""Measures training and sampling beside PyTorch: the same architecture, weights, batch and update, in turns.

PyTorch runs in a process of its own, eagerly and by torch.compile, which waits while ours is measured, and ours
while it is. Both train on random numbers: a loss on noise, the clipped gradient, AdamW, an average. On a GPU
both hold memory at the same time: set XLA_PYTHON_CLIENT_PREALLOCATE=false, or JAX takes most of it beforehand.
"""

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from diffusion_jax.benchmarks import speed, timing
from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.config.options import at_least, one_of, option
from diffusion_jax.data.prepare import cores
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting.tables import quantity, table
from diffusion_jax.runtime import chips, packages
from diffusion_jax.types import PyTree

NETWORKS = ('dit', 'unet')
OURS = 'diffusion_jax'
THEIRS = {'eager': 'PyTorch, eager', 'compile': 'PyTorch, torch.compile'}
PARTS = {'train': 'training step', 'sample': 'sampling'}
COMPARED = 8  # Examples at most whose outputs are compared.


@dataclasses.dataclass(frozen=True, eq=False)
class AgainstTorch:
  """Training and sampling beside PyTorch."""

  on_data: ClassVar = False
  in_one_process: ClassVar = True
  experiment: Experiment
  repeats: int
  modes: str = option(
    'both', "How PyTorch runs: 'eager', 'compile' or 'both'.", one_of('eager', 'compile', 'both')
  )
  parts: tuple[str, ...] = option(tuple(PARTS), 'What is measured, of these two.')
  seconds: float = option(1.0, 'Least seconds of each measurement.', at_least(0))

  def __post_init__(self):
    unknown = sorted(set(self.parts) - set(PARTS))
    if unknown:
      raise ValueError(f'parts: got {", ".join(unknown)}, allowed {", ".join(PARTS)}')
    model = self.experiment.config.model
    if model.name not in NETWORKS:
      raise ValueError(f'modes: got config.model.name {model.name}, allowed {", ".join(NETWORKS)}')
    if not self.experiment.config.sample.batch_size:
      raise ValueError('modes: got config.sample.batch_size 0, allowed a number: both draw as many')
    if model.options.get('dropout'):
      raise ValueError(
        f'modes: got {model.section}.dropout {model.options["dropout"]}, allowed 0: the networks of PyTorch '
        'here have none'
      )
    if 'sample' in self.parts and (found := other_sampling(self.experiment)):
      raise ValueError(
        f"parts: got 'sample' with {found}, allowed one pass a step with plain guidance, as PyTorch samples "
        "here; or ('train',)"
      )

  def measure(self, folder: Path) -> dict[str, Any]:
    """Measures all in turns, `repeats` times; each runs once before it is measured."""
    packages.require('torch', 'eval', "config.bench.name: 'against_torch'")
    size = self.experiment.config.train.batch_size
    experiment = with_random_inputs(self.experiment, size)
    modes = list(THEIRS) if self.modes == 'both' else [self.modes]
    ours = {name: PARTS_OF[name](experiment) for name in self.parts}
    write_request(experiment, folder, self.seconds)
    found = {part: {name: [] for name in (OURS, *(THEIRS[m] for m in modes))} for part in ours}
    with torch_process(folder) as ask:
      version = ask({'version': True})
      for name, part in ours.items():
        jax.block_until_ready(part.run())
        for mode in modes:
          print(f'PyTorch, {mode}, {PARTS[name]}: first run', flush=True)
          ask({'part': name, 'mode': mode})
      for repeat in range(self.repeats):
        print(f'repeat {repeat + 1} of {self.repeats}', flush=True)
        for name, part in ours.items():
          once = {
            OURS: functools.partial(
              timing.steady_seconds, part.run, jax.block_until_ready, self.seconds
            )
          }
          for mode in modes:
            once[THEIRS[mode]] = functools.partial(ask, {'part': name, 'mode': mode})
          for title, measured in once.items():
            found[name][title].append(measured())
    return {
      'seconds': found,
      'torch': version,
      'flops': {name: part.flops for name, part in ours.items()},
      'compile_seconds': {name: part.compile_seconds for name, part in ours.items()},
      'peak_flops_per_s': chips.limits(experiment.dtype).flops_per_s,
    }

  def report(self, results: Mapping[str, Any]) -> str:
    """Makes a table for each part; the last column is our time in units of each."""
    device = f'{cores()} cores, {jax.devices()[0].device_kind}; PyTorch {results["torch"]}'
    sample = self.experiment.config.sample
    titles = {
      'train': f'a training step of {self.experiment.config.train.batch_size} examples',
      'sample': f'{sample.batch_size} samples in {sample.num_steps} steps'
      + (f', guidance {sample.cfg_scale:g}' if sample.cfg_scale != 1 else ''),
    }
    lines = [f'\n{device}; peak {quantity(results["peak_flops_per_s"], "FLOP/s")}']
    for part, times in results['seconds'].items():
      ours = float(np.median(times[OURS]))
      rows = [
        [
          *row,
          quantity(results['flops'][part] / float(np.median(times[row[0]])), 'FLOP/s'),
          f'{ours / float(np.median(times[row[0]])):.2f}x',
        ]
        for row in timing.rows(times, '.3f')
      ]
      head = ['', 'seconds', 'range', 'rate', 'our time']
      lines.append(f'\n{titles[part]}\n\n{table(head, rows)}')
    return '\n'.join(lines) + '\n'


def other_sampling(experiment: Experiment) -> str:
  """What sampling does beyond one pass of the whole network a step, with guidance on a doubled batch; or ''."""
  sample, steps = experiment.config.sample, experiment.config.sample.num_steps
  if sample.guidance != type(sample.guidance)():
    return 'fields of config.sample.guidance'
  if sample.cache.options['interval'] != 1:
    return f'config.sample.cache.interval {sample.cache.options["interval"]}'
  passes = experiment.sampler.evaluations(steps)
  name = experiment.config.sampler.name
  return (
    f'{passes} passes in {steps} steps of config.sampler.name {name}' if passes != steps else ''
  )


def sample_part(experiment: Experiment) -> speed.Part:
  """Sampling with the guidance of the config, or without if its scale is 1."""
  makers = [make for _, make in speed.sample_parts(experiment)]
  return makers[0 if experiment.config.sample.cfg_scale == 1 else -1]()


PARTS_OF: Mapping[str, Callable[[Experiment], speed.Part]] = {
  'train': lambda experiment: next(speed.train_parts(experiment))[1](),
  'sample': sample_part,
}


def shaken(params: PyTree) -> PyTree:
  """Parameters away from the zeros of the initialisation."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.asarray(x) + 0.02 * random.standard_normal(x.shape, np.float32), params
  )


def write_request(experiment: Experiment, folder: Path, least: float) -> None:
  """Writes what the process of PyTorch needs: the config, weights, and an output of ours to compare with.

  least: seconds of each measurement. The output is that of the first examples in float32, where two programs
  that do the same differ little.
  """
  config = experiment.config
  module = experiment.module.clone(dtype=jnp.float32, attention='auto')
  size, shape = config.train.batch_size, experiment.x0_shape
  params = shaken(experiment.initial_state().params['model'])
  rng = np.random.default_rng(1)
  x = rng.standard_normal((size, *shape), np.float32)
  times = rng.uniform(0, 999, size).astype(np.float32)
  labels = rng.integers(0, max(config.num_classes, 1), size).astype(np.int32)
  with jax.default_matmul_precision('float32'):
    made = jax.jit(lambda params, *inputs: module.apply({'params': params}, *inputs))(
      params, x[:COMPARED], times[:COMPARED], {'label': labels[:COMPARED]}
    )
  flat = {'/'.join(path): value for path, value in flatten_dict(params).items()}
  np.savez(folder / 'inputs.npz', x=x, times=times, labels=labels, made=np.asarray(made))
  np.savez(folder / 'params.npz', **flat)
  request = {
    'model': config.model.name,
    'options': dict(config.model.options),
    'out_channels': module.out_channels,
    'num_classes': module.num_classes,
    'sample_size': config.sample.batch_size,
    'num_steps': config.sample.num_steps,
    'cfg_scale': config.sample.cfg_scale,
    'dtype': jnp.dtype(experiment.dtype).name,
    'backend': jax.default_backend(),
    'seconds': least,
  }
  (folder / 'request.json').write_text(json.dumps(request))


@contextlib.contextmanager
def torch_process(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
  """Yields ask(question) -> answer, JSON, of a process that has PyTorch. Raises: InputError if it fails."""
  command = [sys.executable, '-m', 'diffusion_jax.benchmarks.torch_process', str(folder)]
  path = os.pathsep.join(filter(None, sys.path))  # Wherever this process found its packages.
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with open(folder / 'errors', 'w') as errors:
    process = subprocess.Popen(
      command, env={**os.environ, 'PYTHONPATH': path}, stderr=errors, **pipes
    )

  def ask(question):
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write(json.dumps(question) + '\n')
      process.stdin.flush()
    line = process.stdout.readline()
    if not line:
      last = (folder / 'errors').read_text().strip().splitlines() or ['no message']
      raise InputError(f'--mode=bench: the process of PyTorch ended: {last[-1][:500]}')
    return json.loads(line)

  try:
    yield ask
  finally:
    process.kill()
    process.communicate()
