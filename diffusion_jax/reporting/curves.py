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


def read_series(path: Path) -> tuple[Series, int]:
  """The finite numbers of metrics.jsonl by name, in the order of steps; how many lines are unreadable.

  Nothing if there is no file. A step that is there twice counts as written last.
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
    for name, value in content.items():
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
    plots.append(Axes(*_loss_words(group[0][2]), -1, tuple(drawn)))
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
  features, data = config['eval']['features']['name'], config['data']['name']
  if name == PSNR:
    title, quantity = f'reconstructions of held-out images of {data}', 'PSNR (dB)'
  else:
    title = f'{data}: {count} samples, {features} features'
    quantity = of.metric_title(metric, features)
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
  """The settings that decide which quantity a loss is."""
  if of.is_autoencoder(config):
    options = config['objective']['autoencoder']
    weights = ('kl_weight', 'perceptual_weight', 'discriminator_weight')
    return ['autoencoder', _data(config), [options[name] for name in weights]]
  choices = [_choice(config[name]) for name in ('schedule', 'time_sampling', 'objective')]
  vae = config['vae']
  latents = [vae['fingerprint'], vae['scale']] if config['space'] == 'latent' else []
  return [_data(config), config['process'], choices, latents]


def _loss_words(config: Mapping[str, Any]) -> tuple[str, str]:
  """The title of a loss's plot and the name of the quantity."""
  data, process = config['data']['name'], config['process']
  if of.is_autoencoder(config):
    return f'autoencoder of {data}', 'autoencoder loss'
  where = 'latents' if config['space'] == 'latent' else 'pixels'
  title = f'{config["schedule"]["name"]} schedule, {where} of {data}'
  if config['objective']['denoising']['weighting'] != 'none' or process['learned_variance']:
    return title, 'denoising loss'
  return title, f'mean squared error of {process["prediction_type"]}'


def _metric_kind(config: Mapping[str, Any]) -> list:
  """The settings that decide which quantity a metric measured in training is."""
  evaluation = config['eval']
  measured_by = [evaluation['reference'], evaluation['backend']]
  return [_data(config), _choice(evaluation['features']), measured_by]


def _data(config: Mapping[str, Any]) -> list:
  """The fields that tell data apart."""
  return [config['data'][name] for name in ('name', 'fingerprint', 'image_size')]


def _choice(section: Mapping[str, Any]) -> list:
  """The name of a plug-in and its options."""
  return [section['name'], section.get(section['name'], {})]
