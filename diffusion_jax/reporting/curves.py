"""metrics.jsonl as curves: which may be drawn on the same axes, because they are the same quantity."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.reporting import records as of
from diffusion_jax.reporting.plots import Axes, Curve

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # Name -> steps and values, (n,) each.
Trained = tuple[str, int, Mapping[str, Any], Series]  # Model, number of its look, config, series.
LOSS, HOLDOUT, PSNR = 'loss', 'holdout_loss', 'holdout_psnr'
DATA = ('name', 'fingerprint', 'image_size')  # What tells data apart.
UNPREFIXED = ('psnr', 'reconstruction', 'kl')  # As runs called them in training and held out alike.


def read_series(path: Path) -> tuple[Series, int]:
  """The finite numbers of metrics.jsonl by name, in the order of steps; how many lines are unreadable.

  Nothing if there is no file. Held-out numbers of an autoencoder carry their prefix also where the run
  wrote none. A step that is there twice counts as written last.
  """
  if not path.is_file():
    return {}, 0
  found: dict[str, dict[int, float]] = {}
  unreadable = 0
  for line in path.read_text(errors='replace').splitlines():
    try:
      content = json.loads(line)
      step = int(content.pop('step'))
    except (ValueError, TypeError, AttributeError, KeyError):
      unreadable += 1
      continue
    held_out = LOSS not in content  # Training's numbers stand beside its loss, in one line.
    for name, value in content.items():
      name = f'holdout_{name}' if held_out and name in UNPREFIXED else name
      if of.is_number(value) and math.isfinite(value):
        found.setdefault(name, {})[step] = value
  return {
    name: (np.array(sorted(points)), np.array([points[step] for step in sorted(points)], float))
    for name, points in found.items()
  }, unreadable


def loss_plots(runs: Sequence[Trained]) -> list[Axes]:
  """Training and held-out loss, one plot for all runs whose loss is the same quantity."""
  plots = []
  for group in _together([r for r in runs if LOSS in r[3] or HOLDOUT in r[3]], _loss_kind):
    drawn = [
      Curve(model, look, *series[name], is_noisy=name == LOSS)
      for model, look, _, series in group
      for name in (LOSS, HOLDOUT)
      if name in series
    ]
    config = group[0][2]
    plots.append(Axes(_loss_title(config), _loss_quantity(config), -1, tuple(drawn)))
  return plots


def metric_plots(runs: Sequence[Trained]) -> dict[str, list[Axes]]:
  """Metrics measured in training, NAME@N, and held-out PSNR: file stem -> a plot for every protocol."""
  names = dict.fromkeys(name for run in runs for name in run[3] if '@' in name or name == PSNR)
  figures = {}
  for name in names:
    if of.STD + '@' in name and name.replace(of.STD, '') in names:
      continue
    chosen = [run for run in runs if name in run[3]]
    groups = _together(chosen, _metric_kind)
    figures['curves-' + re.sub(r'[^\w.-]+', '-', name)] = [
      _metric_axes(name, group) for group in groups
    ]
  return figures


def _metric_axes(name: str, group: Sequence[Trained]) -> Axes:
  metric, _, count = name.partition('@')
  config = group[0][2]
  features, data = (
    of.part_of(config, 'eval', 'features', 'name'),
    of.part_of(config, 'data', 'name'),
  )
  if name == PSNR:
    title, quantity = f'reconstructions of held-out images of {data}', 'PSNR (dB)'
  else:
    title = f'{data}: {count} samples, {features} features'
    quantity = of.metric_title(metric, str(features))
  drawn = []
  for model, look, _, series in group:
    spread = series.get(f'{metric}{of.STD}@{count}')
    whole = spread is not None and np.array_equal(spread[0], series[name][0])
    drawn.append(Curve(model, look, *series[name], spread=spread[1] if whole else None))
  return Axes(title, quantity, of.direction(metric), tuple(drawn))


def _together(runs: Sequence[Trained], kind: Callable[[Mapping], Any]) -> list[list[Trained]]:
  """Runs of the same kind(config) together, in their order."""
  groups: dict[str, list[Trained]] = {}
  for run in runs:
    groups.setdefault(of.canonical(kind(run[2])), []).append(run)
  return list(groups.values())


def _loss_kind(config: Mapping[str, Any]) -> list:
  """What decides of what a loss is the loss."""
  data = _parts(config, 'data', *DATA)
  objective = of.part_of(config, 'objective')
  if of.is_autoencoder(config):
    weights = ('kl_weight', 'perceptual_weight', 'discriminator_weight')
    return ['autoencoder', data, _parts(objective, 'autoencoder', *weights)]
  latent = config.get('space') == 'latent'
  vae = _parts(config, 'vae', 'fingerprint', 'scale') if latent else []
  choices = [
    _choice(of.part_of(config, name)) for name in ('schedule', 'time_sampling', 'objective')
  ]
  return [data, of.part_of(config, 'process'), choices, vae]


def _loss_title(config: Mapping[str, Any]) -> str:
  data = of.part_of(config, 'data', 'name')
  if of.is_autoencoder(config):
    return f'autoencoder of {data}'
  where = 'latents' if config.get('space') == 'latent' else 'pixels'
  return f'{of.part_of(config, "schedule", "name")} schedule, {where} of {data}'


def _loss_quantity(config: Mapping[str, Any]) -> str:
  if of.is_autoencoder(config):
    return 'autoencoder loss'
  process = of.section_of(config, 'process')
  weighting = of.part_of(config, 'objective', 'denoising', 'weighting')
  plain = weighting in ('none', {}) and not process.get('learned_variance')
  return f'mean squared error of {process.get("prediction_type")}' if plain else 'denoising loss'


def _metric_kind(config: Mapping[str, Any]) -> list:
  """What decides of what a metric measured in training is the metric."""
  features = _choice(of.part_of(config, 'eval', 'features'))
  return [_parts(config, 'data', *DATA), features, _parts(config, 'eval', 'reference', 'backend')]


def _parts(config: Mapping[str, Any], section: str, *names: str) -> list:
  return [of.part_of(config, section, name) for name in names]


def _choice(section: Mapping[str, Any]) -> list:
  """The name of a plug-in and its options."""
  name = of.part_of(section, 'name')
  return [name, of.part_of(section, str(name))]
