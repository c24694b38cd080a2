"""The backbones written for PyTorch, with the parameters of ours: what against_torch.py measures beside them.

As a PyTorch user would write them for speed: one product for queries, keys and values, the fused
scaled_dot_product_attention, convolutions of NCHW tensors, which on a GPU are laid out as NHWC. Functions of a
flat dictionary of tensors, so that torch is imported by the caller alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from diffusion_jax.models.dit import DiT, position_embedding
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_blocks import NUM_GROUPS
from diffusion_jax.types import PyTree

Tensor = Any  # torch.Tensor
Tensors = Mapping[str, Tensor]


def tensors_of(torch: Any, params: PyTree, device: str) -> dict[str, Tensor]:
  """Our parameters as PyTorch lays them out: 'blocks/3/qkv/kernel', kernels with the outputs first."""
  flat = {'/'.join(path): np.asarray(x) for path, x in flatten_dict(params).items()}
  found = {}
  for name, value in flat.items():
    if name.startswith('blocks/'):  # Scanned: the first axis numbers the blocks.
      rest = name.removeprefix('blocks/')
      found |= {f'blocks/{i}/{rest}': _laid_out(name, x) for i, x in enumerate(value)}
    else:
      found[name] = _laid_out(name, value)
  return {
    name: _placed(torch, torch.tensor(np.ascontiguousarray(x)), device).requires_grad_()
    for name, x in found.items()
  }


def constants(torch: Any, module: Any, shape: tuple[int, int], device: str) -> dict[str, Tensor]:
  """What a network of images of this height and width takes beside its parameters: a DiT's positions."""
  if not isinstance(module, DiT):
    return {}
  rows, columns = (n // module.patch_size for n in shape)
  positions = position_embedding(rows, columns, module.hidden_size)
  return {'positions': torch.from_numpy(positions).to(device)}


def images(torch: Any, module: Any, x: Tensor) -> Tensor:
  """x (B, C, H, W) as the network's convolutions take it; a DiT cuts patches and has none."""
  return x if isinstance(module, DiT) else _placed(torch, x, x.device.type)


def _placed(torch: Any, x: Tensor, device: str) -> Tensor:
  """On the device; what has four axes is laid out as NHWC on a GPU, where that is faster in bfloat16."""
  x = x.to(device)
  if device != 'cuda' or x.ndim != 4:
    return x
  return x.contiguous(memory_format=torch.channels_last)


def _laid_out(name: str, x: np.ndarray) -> np.ndarray:
  if name.endswith('qkv/kernel'):
    x = x.reshape(len(x), -1)
  if name.endswith('qkv/bias'):
    return x.reshape(-1)
  if not name.endswith('kernel'):
    return x
  return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def _linear(torch: Any, p: Tensors, name: str, x: Tensor) -> Tensor:
  return torch.nn.functional.linear(x, p[f'{name}/kernel'], p[f'{name}/bias'])


def condition_of(
  torch: Any, p: Tensors, time: Tensor, label: Tensor, width: int, frequency_shift: int
) -> Tensor:
  """(B,), (B,) -> (B, d), as layers.ConditionEmbedding."""
  half = width // 2
  rates = torch.exp(
    torch.arange(half, device=time.device) * (-math.log(10_000) / (half - frequency_shift))
  )
  angles = time[:, None] * rates
  h = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
  h = torch.nn.functional.silu(_linear(torch, p, 'condition/time_in', h))
  h = _linear(torch, p, 'condition/time_out', h)
  table = p.get('condition/label/embedding')
  return h if table is None else h + table[label]


def attention(torch: Any, qkv: Tensor, num_heads: int) -> Tensor:
  """(B, N, 3 d) -> (B, N, d)."""
  batch, length, width = qkv.shape
  q, k, v = qkv.view(batch, length, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
  h = torch.nn.functional.scaled_dot_product_attention(q, k, v)
  return h.transpose(1, 2).reshape(batch, length, width // 3)


def dit(torch: Any, module: DiT, p: Tensors, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
  """x (B, C, H, W) -> (B, out_channels, H, W). p: with those of constants."""
  functional, patch = torch.nn.functional, module.patch_size
  batch, channels, height, width = x.shape
  rows, columns, d = height // patch, width // patch, module.hidden_size
  patches = x.view(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
  tokens = _linear(torch, p, 'patch_in', patches.reshape(batch, rows * columns, -1))
  tokens = tokens + p['positions']
  c = functional.silu(condition_of(torch, p, time, label, 256, module.frequency_shift))

  def norm(h):
    return functional.layer_norm(h, (d,), eps=1e-6)

  for i in range(module.depth):
    name = f'blocks/{i}'
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _linear(
      torch, p, f'{name}/adaln/modulation', c
    )[:, None].chunk(6, dim=-1)
    h = norm(tokens) * (1 + scale_a) + shift_a
    h = attention(torch, _linear(torch, p, f'{name}/qkv', h), module.num_heads)
    tokens = tokens + gate_a * _linear(torch, p, f'{name}/attention_out', h)
    h = norm(tokens) * (1 + scale_m) + shift_m
    h = functional.gelu(_linear(torch, p, f'{name}/mlp_in', h), approximate='tanh')
    tokens = tokens + gate_m * _linear(torch, p, f'{name}/mlp_out', h)
  shift, scale = _linear(torch, p, 'final_adaln/modulation', c)[:, None].chunk(2, dim=-1)
  tokens = _linear(torch, p, 'patch_out', norm(tokens) * (1 + scale) + shift)
  made = tokens.view(batch, rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
  return made.reshape(batch, -1, height, width)


def unet(torch: Any, module: UNet, p: Tensors, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
  """x (B, C, H, W) -> (B, out_channels, H, W), without dropout."""
  functional = torch.nn.functional
  c = condition_of(torch, p, time, label, module.channels, module.frequency_shift)
  c = functional.silu(c)

  def norm(name, h):
    weights = p[f'{name}/scale'], p[f'{name}/bias']
    return functional.group_norm(h, NUM_GROUPS, *weights, eps=module.norm_epsilon)

  def conv(name, h, **options):
    return functional.conv2d(h, p[f'{name}/kernel'], p[f'{name}/bias'], **options)

  def resized(h, resample):
    if resample == 'down':
      return functional.avg_pool2d(h, 2)
    return functional.interpolate(h, scale_factor=2.0) if resample else h

  def residual(name, h, resample=''):
    skip = resized(h, resample)
    h = conv(
      f'{name}/conv_in', resized(functional.silu(norm(f'{name}/norm_in', h)), resample), padding=1
    )
    modulation = _linear(torch, p, f'{name}/modulation', c)[:, :, None, None]
    if module.scale_shift_norm:
      scale, shift = modulation.chunk(2, dim=1)
      h = norm(f'{name}/norm_out', h) * (1 + scale) + shift
    else:
      h = norm(f'{name}/norm_out', h + modulation)
    h = conv(f'{name}/conv_out', functional.silu(h), padding=1)
    if f'{name}/skip/kernel' in p:
      kernel = p[f'{name}/skip/kernel'][:, :, None, None]
      skip = functional.conv2d(skip, kernel, p[f'{name}/skip/bias'])
    return skip + h

  def attend(name, h):
    batch, channels, height, width = h.shape
    heads = channels // module.head_channels if module.head_channels else module.num_heads
    tokens = norm(f'{name}/norm', h).flatten(2).transpose(1, 2)
    tokens = attention(torch, _linear(torch, p, f'{name}/qkv', tokens), heads)
    tokens = _linear(torch, p, f'{name}/out', tokens)
    return h + tokens.transpose(1, 2).reshape(batch, channels, height, width)

  def stage(name, h):
    h = residual(f'{name}_residual', h)
    return attend(f'{name}_attention', h) if f'{name}_attention/qkv/kernel' in p else h

  def down(name, h):
    if module.resample == 'residual':
      return residual(name, h, 'down')
    return conv(name, functional.pad(h, (0, 1, 0, 1)), stride=2)

  def up(name, h):
    if module.resample == 'residual':
      return residual(name, h, 'up')
    return conv(name, resized(h, 'up'), padding=1)

  levels = range(len(module.channel_mult))
  h = conv('conv_in', x, padding=1)
  skips = [h]
  for level in levels:
    for block in range(module.num_res_blocks):
      h = stage(f'down_{level}_{block}', h)
      skips.append(h)
    if level < len(levels) - 1:
      h = down(f'down_{level}_resample', h)
      skips.append(h)
  h = residual('mid_0_residual', h)
  h = attend('mid_attention', h)
  h = residual('mid_1_residual', h)
  for level in reversed(levels):
    for block in range(module.num_res_blocks + 1):
      h = stage(f'up_{level}_{block}', torch.cat([h, skips.pop()], dim=1))
    if level > 0:
      h = up(f'up_{level}_resample', h)
  return conv('conv_out', functional.silu(norm('norm_out', h)), padding=1)
