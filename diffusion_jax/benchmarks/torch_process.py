"""The process of PyTorch beside which against_torch.py measures: it reads a request, then answers questions."""

import functools
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from diffusion_jax.benchmarks import timing, torch_networks
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.unet import UNet

TOLERANCE = 1e-3  # Of the outputs' difference in float32, relative to their norm.
KINDS = {'dit': (DiT, torch_networks.dit), 'unet': (UNet, torch_networks.unet)}


def main(folder: Path) -> None:
  """Answers questions of against_torch.torch_process: a line each, the seconds of one run."""
  import torch

  request = json.loads((folder / 'request.json').read_text())
  device = {'gpu': 'cuda', 'cpu': 'cpu'}.get(request['backend'])
  if device is None or (device == 'cuda' and not torch.cuda.is_available()):
    sys.exit(f'this PyTorch does not run on the {request["backend"]} that JAX has')
  options = {k: tuple(v) if isinstance(v, list) else v for k, v in request['options'].items()}
  kind, apply = KINDS[request['model']]
  sizes = {'out_channels': request['out_channels'], 'num_classes': request['num_classes']}
  module = kind(**options, **sizes)
  with np.load(folder / 'params.npz') as file:
    params = unflatten_dict({tuple(name.split('/')): file[name] for name in file})
  p = torch_networks.tensors_of(torch, params, device)
  parameters = list(p.values())
  with np.load(folder / 'inputs.npz') as file:
    x, times, labels, made = (
      torch.from_numpy(file[name]).to(device) for name in ('x', 'times', 'labels', 'made')
    )
  p |= torch_networks.constants(torch, module, x.shape[1:3], device)
  x, made = (
    torch_networks.images(torch, module, value.permute(0, 3, 1, 2).contiguous())
    for value in (x, made)
  )
  labels = labels.long()

  def network(x, times, labels, half=request['dtype'] == 'bfloat16'):
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
      return apply(torch, module, p, x, times, labels).float()

  reduced = torch.backends.cudnn.allow_tf32
  torch.backends.cudnn.allow_tf32 = False
  with torch.no_grad():
    few = (value[: len(made)] for value in (x, times, labels))
    error = torch.linalg.norm(network(*few, half=False)[:, : made.shape[1]] - made)
  torch.backends.cudnn.allow_tf32 = reduced
  if not error <= TOLERANCE * torch.linalg.norm(made):
    sys.exit(f'the networks differ by {error / torch.linalg.norm(made):.3g} of the norm')

  @functools.cache
  def run_of(part, mode):
    # One shape a program: PyTorch would compile a second batch size for all sizes, which is slower.
    net = network if mode == 'eager' else torch.compile(network, dynamic=False)
    if part == 'train':
      return training(torch, net, parameters, x, labels)
    return sampling(torch, net, x, labels, request)

  def wait(made):
    del made
    if device == 'cuda':
      torch.cuda.synchronize()

  for line in sys.stdin:
    question = json.loads(line)
    if 'version' in question:
      on = torch.cuda.get_device_name() if device == 'cuda' else 'CPU'
      answer = f'{torch.__version__} on {on} with {torch.get_num_threads()} threads'
    else:
      run = run_of(question['part'], question['mode'])
      answer = timing.steady_seconds(run, wait, request['seconds'])
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
    return loss.detach()  # On the device: fetching it would wait.

  return step


def sampling(torch: Any, network: Callable, x: Any, labels: Any, request: Mapping) -> Callable:
  """DDIM from noise; guidance doubles the batch of the network."""
  size, steps, scale = request['sample_size'], request['num_steps'], request['cfg_scale']
  start = torch.randn(size, *x.shape[1:], device=x.device)
  if x.is_contiguous(memory_format=torch.channels_last):
    start = start.contiguous(memory_format=torch.channels_last)
  repeated = labels.repeat(-(-size // len(labels)))[:size]
  if scale != 1:
    repeated = torch.cat([repeated, torch.full_like(repeated, request['num_classes'])])
  angles = torch.linspace(np.pi / 2 * 0.999, 0, steps + 1)

  def predicted(x_t, time):
    inputs = x_t if scale == 1 else torch.cat([x_t, x_t])
    times = torch.full((len(inputs),), time, device=x.device)
    noise = network(inputs, times, repeated)[:, : x.shape[1]]
    if scale == 1:
      return noise
    conditional, unconditional = noise.chunk(2)
    return unconditional + scale * (conditional - unconditional)

  @torch.no_grad()
  def sample():
    x_t = start
    for now, then in itertools.pairwise(angles):
      noise = predicted(x_t, float(now / (np.pi / 2) * 999))
      x0 = ((x_t - torch.sin(now) * noise) / torch.cos(now)).clamp(-1, 1)
      x_t = torch.cos(then) * x0 + torch.sin(then) * noise
    return ((x_t + 1) * 127.5).round().to(torch.uint8)

  return sample


if __name__ == '__main__':
  main(Path(sys.argv[1]))
