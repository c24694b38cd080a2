"""The pieces of a report by name, in the order in which they run. Knowing the names loads no JAX."""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

from accelerator import cifar, goals

CHECKS = ('attention', 'float32', 'condition', 'gradients', 'samples', 'resume', 'fid')
DITS = {'full': ('s', 'b', 'l', 'xl'), 'tiny': ('s',)}
SAMPLED = {'full': ('b', 'xl'), 'tiny': ('s',)}
ATTENTIONS = ('xla', 'cudnn')


def table(size: str) -> dict[str, tuple]:
  """Name -> (module, function, arguments after the sizes), of what follows the goals and the training."""
  scales, found = {'': 1.0, '.guided': goals.CFG_SCALE}, {}
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


def first_table() -> dict[str, tuple]:
  """As table, of what comes before them."""
  found = {f'check.{name}': ('checks', name) for name in CHECKS}
  return found | {'time.matmul': ('speeds', 'time_matmul')}


def names_of(size: str, trains: bool = False) -> list[str]:
  """The names in order: what tells most comes first. trains: whether there is an archive of CIFAR-10."""
  found = [*first_table(), *(f'goal.{name}' for name in goals.names(size))]
  found += [f'cifar.{name}' for name in cifar.NAMES] if trains else []
  return [*found, *table(size)]


def resumes(name: str) -> bool:
  """Returns whether a piece goes on where it was stopped, so that running out of time is no error."""
  return name.startswith('cifar.')


def opens_device(name: str) -> bool:
  """Returns whether a piece computes in its own process; others start some, which need the device."""
  return name != 'check.resume' and not name.startswith('cifar.')


def variables(names: list[str]) -> dict[str, str]:
  """Variables of the environment that a process of these pieces needs."""
  if not any(name.startswith('goal.') for name in names):
    return {}
  first = os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]  # PyTorch's runs on one GPU.
  return {'CUDA_VISIBLE_DEVICES': first, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}


def pieces(size: str, training: cifar.Request | None = None) -> dict[str, Callable[[], Any]]:
  """Name -> what runs it and returns its result, ready for JSON."""

  def run(name: str) -> Any:
    group, _, rest = name.partition('.')
    if name == 'check.resume':
      return importlib.import_module('accelerator.resume').check(size)
    if group == 'cifar':
      return cifar.run(rest, training)
    import jax

    if group == 'goal':
      return importlib.import_module('accelerator.goal_speeds').measure(size, rest)
    from accelerator.systems import SIZES

    module, function, *arguments = (first_table() | table(size))[name]
    if name.split('.')[2:3] == ['cudnn'] and jax.default_backend() != 'gpu':
      return {'skipped': 'needs an NVIDIA GPU'}
    function = getattr(importlib.import_module(f'accelerator.{module}'), function)
    return function(SIZES[size], *arguments)

  names = names_of(size, training is not None)
  return {name: functools.partial(run, name) for name in names}
