"""The pieces of a report by name, in the order in which they run. Knowing the names loads no JAX."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

CHECKS = ('attention', 'float32', 'condition', 'gradients', 'samples', 'resume', 'fid')
DITS = {'full': ('s', 'b', 'l', 'xl'), 'tiny': ('s',)}
SAMPLED = {'full': ('b', 'xl'), 'tiny': ('s',)}
ATTENTIONS = ('xla', 'cudnn')
GUIDED = 4.0


def table(size: str) -> dict[str, tuple]:
  """Name -> (module, function, arguments after the sizes)."""
  scales = {'': 1.0, '.guided': GUIDED}
  found = {f'check.{name}': ('checks', name) for name in CHECKS}
  found['time.matmul'] = ('speeds', 'time_matmul')
  for name in DITS[size]:
    for attention in ATTENTIONS:
      found[f'train.dit-{name}.{attention}'] = ('speeds', 'train_dit', name, attention)
  for attention in ATTENTIONS:
    found[f'train.unet.{attention}'] = ('speeds', 'train_unet', attention)
  for title, adversarial in (('l1', False), ('adversarial', True)):
    found[f'train.kl-f4.{title}'] = ('speeds', 'train_vae', adversarial)
  networks = [(f'dit-{name}', 'dit', name) for name in SAMPLED[size]] + [('unet', 'unet', '')]
  for title, kind, name in networks:
    for attention in ATTENTIONS:
      for end, scale in scales.items():
        arguments = (kind, name, attention, scale)
        found[f'sample.{title}.{attention}{end}'] = ('speeds', 'sample', *arguments)
  return found


def names_of(size: str) -> list[str]:
  """The names in order."""
  return list(table(size))


def pieces(size: str) -> dict[str, Callable[[], Any]]:
  """Name -> what runs it and returns its result, ready for JSON."""

  def run(name: str) -> Any:
    import jax

    from accelerator.systems import SIZES

    module, function, *arguments = table(size)[name]
    if name == 'check.resume':  # Its processes need the device.
      return importlib.import_module('accelerator.resume').check(size)
    if name.split('.')[2:3] == ['cudnn'] and jax.default_backend() != 'gpu':
      return {'skipped': 'needs an NVIDIA GPU'}
    function = getattr(importlib.import_module(f'accelerator.{module}'), function)
    return function(SIZES[size], *arguments)

  return {name: functools.partial(run, name) for name in table(size)}
