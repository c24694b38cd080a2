"""Train, sample and measure class-conditional image diffusion models in JAX.

    import diffusion_jax as dj

    run = dj.load_run('runs/quickstart')
    images = run.sample([7, 7, 2], cfg_scale=2.0)

docs/library.md shows the rest.
"""

import importlib
from typing import Any

__all__ = ['Run', 'load_run', 'new_run']


def __getattr__(name: str) -> Any:
  """Returns a public name; the first one that is used loads JAX."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.run'), name)
