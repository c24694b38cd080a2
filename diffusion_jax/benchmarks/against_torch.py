"""Measures training and sampling beside PyTorch: the same architecture, weights, batch and update, in turns.

PyTorch runs in a process of its own, eagerly and by torch.compile, which waits while ours is measured, and ours
while it is. Both train on random numbers: a loss on noise, the clipped gradient, AdamW, an average.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from diffusion_jax.benchmarks import speed, timing
from diffusion_jax.benchmarks.stand_ins import with_random_inputs
from diffusion_jax.config.options import one_of, option
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
TOLERANCE = {
  'float32': 1e-3,
  'bfloat16': 3e-2,
}  # Of the outputs' difference, relative to their norm.


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

  def __post_init__(self):
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

  def measure(self, folder: Path) -> dict[str, Any]:
    """Measures all in turns, `repeats` times; each runs once before it is measured."""
    packages.require('torch', 'eval', "config.bench.name: 'against_torch'")
    size = self.experiment.config.train.batch_size
    experiment = with_random_inputs(self.experiment, size)
    modes = list(THEIRS) if self.modes == 'both' else [self.modes]
    runs = {
      'train': next(speed.train_parts(experiment))[1]().run,
      'sample': next(speed.sample_parts(experiment))[1]().run,
    }
    write_request(experiment, folder)
    found = {part: {name: [] for name in (OURS, *(THEIRS[m] for m in modes))} for part in PARTS}
    with torch_process(folder) as ask:
      version = ask({'version': True})
      for part, run in runs.items():
        jax.block_until_ready(run())
        for mode in modes:
          print(f'PyTorch, {mode}, {PARTS[part]}: first run', flush=True)
          ask({'part': part, 'mode': mode})
      for repeat in range(self.repeats):
        print(f'repeat {repeat + 1} of {self.repeats}', flush=True)
        for part, run in runs.items():
          once = {OURS: lambda run=run: timing.seconds(lambda: jax.block_until_ready(run()))}
          for mode in modes:
            once[THEIRS[mode]] = functools.partial(ask, {'part': part, 'mode': mode})
          for name, measured in once.items():
            measured()  # What waited for its turn has lost its caches.
            found[part][name].append(measured())
    forward = speed.forward_flops(experiment)
    steps = experiment.config.sample.num_steps
    flops = {
      'train': 3 * size * forward,
      'sample': steps * experiment.config.sample.batch_size * forward,
    }
    peak = chips.limits(experiment.dtype).flops_per_s
    return {'seconds': found, 'torch': version, 'flops': flops, 'peak_flops_per_s': peak}

  def report(self, results: Mapping[str, Any]) -> str:
    """Makes a table for each part; the last column is our time in units of each."""
    device = f'{cores()} cores, {jax.devices()[0].device_kind}; PyTorch {results["torch"]}'
    sample = self.experiment.config.sample
    titles = {
      'train': f'a training step of {self.experiment.config.train.batch_size} examples',
      'sample': f'{sample.batch_size} samples in {sample.num_steps} steps',
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


def shaken(params: PyTree) -> PyTree:
  """Parameters away from the zeros of the initialisation."""
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: np.asarray(x) + 0.02 * random.standard_normal(x.shape, np.float32), params
  )


def write_request(experiment: Experiment, folder: Path) -> None:
  """Writes what the process of PyTorch needs: the config, weights, and an output of ours to compare with."""
  module, config = experiment.module, experiment.config
  size, shape = config.train.batch_size, experiment.x0_shape
  params = shaken(experiment.initial_state().params['model'])
  rng = np.random.default_rng(1)
  x = rng.standard_normal((size, *shape), np.float32)
  times = rng.uniform(0, 999, size).astype(np.float32)
  labels = rng.integers(0, max(config.num_classes, 1), size).astype(np.int32)
  made = jax.jit(lambda *inputs: module.apply({'params': params}, *inputs))(
    x, times, {'label': labels}
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
    'dtype': jnp.dtype(experiment.dtype).name,
  }
  (folder / 'request.json').write_text(json.dumps(request))


@contextlib.contextmanager
def torch_process(folder: Path) -> Iterator[Callable[[Mapping[str, Any]], Any]]:
  """Yields ask(question) -> answer, JSON, of a process that has PyTorch. Raises: InputError if it fails."""
  command = [sys.executable, '-m', __name__, str(folder)]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  with open(folder / 'errors', 'w') as errors:
    process = subprocess.Popen(command, stderr=errors, **pipes)

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


def main(folder: Path) -> None:
  """Answers questions of torch_process: a line each, the seconds of one run."""
  import torch

  from diffusion_jax.benchmarks import torch_networks
  from diffusion_jax.models.dit import DiT
  from diffusion_jax.models.unet import UNet

  request = json.loads((folder / 'request.json').read_text())
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  options = {k: tuple(v) if isinstance(v, list) else v for k, v in request['options'].items()}
  kind, apply = {'dit': (DiT, torch_networks.dit), 'unet': (UNet, torch_networks.unet)}[
    request['model']
  ]
  sizes = {'out_channels': request['out_channels'], 'num_classes': request['num_classes']}
  module = kind(**options, **sizes)
  with np.load(folder / 'params.npz') as file:
    params = unflatten_dict({tuple(name.split('/')): file[name] for name in file})
  p = torch_networks.tensors_of(torch, params, device)
  with np.load(folder / 'inputs.npz') as file:
    x, times, labels, made = (
      torch.from_numpy(file[name]).to(device) for name in ('x', 'times', 'labels', 'made')
    )
  x, made = (value.permute(0, 3, 1, 2).contiguous() for value in (x, made))
  labels = labels.long()

  half = torch.autocast(device, dtype=torch.bfloat16, enabled=request['dtype'] == 'bfloat16')

  def network(x, times, labels):
    with half:
      return apply(torch, module, p, x, times, labels).float()

  with torch.no_grad():
    error = torch.linalg.norm(network(x, times, labels)[:, : made.shape[1]] - made)
  if error > TOLERANCE[request['dtype']] * torch.linalg.norm(made):
    sys.exit(f'the networks differ by {error / torch.linalg.norm(made):.3g} of the norm')
  runs = {}
  for mode in THEIRS:
    net = network if mode == 'eager' else torch.compile(network)
    runs['train', mode] = training(torch, net, list(p.values()), x, labels)
    runs['sample', mode] = sampling(torch, net, x, labels, request)
  for line in sys.stdin:
    question = json.loads(line)
    if 'version' in question:
      answer = f'{torch.__version__} with {torch.get_num_threads()} threads'
    else:
      answer = timing.seconds(runs[question['part'], question['mode']])
    print(json.dumps(answer), flush=True)


def training(torch: Any, network: Callable, parameters: list, x0: Any, labels: Any) -> Callable:
  """One step: noise, loss, gradient, clipping, AdamW, average."""
  averages = [p.detach().clone() for p in parameters]
  optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)

  def step():
    times = torch.randint(0, 1000, (len(x0),), device=x0.device).float()
    angle = (times / 1000 * (np.pi / 2))[:, None, None, None]
    noise = torch.randn_like(x0)
    made = network(torch.cos(angle) * x0 + torch.sin(angle) * noise, times, labels)
    loss = torch.nn.functional.mse_loss(made[:, : x0.shape[1]], noise)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
      torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1e-4)
    return loss.item()

  return step


def sampling(torch: Any, network: Callable, x: Any, labels: Any, request: Mapping) -> Callable:
  """DDIM from noise, without guidance."""
  size, steps = request['sample_size'], request['num_steps']
  start = torch.randn(size, *x.shape[1:], device=x.device)
  repeated = labels.repeat(-(-size // len(labels)))[:size]
  angles = torch.linspace(np.pi / 2 * 0.999, 0, steps + 1)

  @torch.no_grad()
  def sample():
    x_t = start
    for now, then in itertools.pairwise(angles):
      times = torch.full((size,), float(now / (np.pi / 2) * 999), device=x.device)
      noise = network(x_t, times, repeated)[:, : x.shape[1]]
      x0 = ((x_t - torch.sin(now) * noise) / torch.cos(now)).clamp(-1, 1)
      x_t = torch.cos(then) * x0 + torch.sin(then) * noise
    return ((x_t + 1) * 127.5).round().to(torch.uint8).cpu().numpy()

  return sample


if __name__ == '__main__':
  main(Path(sys.argv[1]))
