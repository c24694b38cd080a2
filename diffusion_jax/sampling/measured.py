"""Measures the sample sets of a work directory: what a result says of them, and of how it was made.

Sets are made first where they are absent. Every process calls these together; the first one writes.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.nearest_neighbours import nearest
from diffusion_jax.experiment import likelihood, stored
from diffusion_jax.experiment.checks import with_settings
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.reporting import images
from diffusion_jax.reporting.runs import read_result
from diffusion_jax.runtime import cost, files, hosts, provenance
from diffusion_jax.sampling import sample_set, samples
from diffusion_jax.training.state import Weights
from diffusion_jax.types import DataSource

NEIGHBOURS_SHOWN = 8  # Training images beside each sample.


def with_num_samples(experiment: Experiment) -> Experiment:
  """Returns the experiment with config.sample.num_samples set by config.eval.num_samples."""
  config = experiment.config
  count = config.eval.num_samples or config.sample.num_samples
  if count < 2:
    raise InputError(f'config.eval.num_samples: got {count}, allowed >= 2')
  return with_settings(experiment, {'sample.num_samples': count})


def sample_result(
  experiment: Experiment, evaluator: Evaluator, workdir: Path, warnings: Sequence[str]
) -> dict[str, Any]:
  """Measures config.eval.num_seeds sample sets and returns the content of DIR/eval/NAME.json.

  evaluator: of the same config.eval. warnings: those of `checked`.
  """
  count, warnings = experiment.config.sample.num_samples, list(warnings)
  sets = [opened(experiment, workdir)]
  first = sets[0][1]['identity']
  sets += [opened(each, workdir) for each in with_other_seeds(experiment, first['step'])]
  same = {key: value for key, value in first.items() if key != 'seed'}
  for folder, meta, _ in sets:  # A mean over seeds needs one checkpoint.
    sample_set.require_same(folder, meta['identity'], same)
  if is_told_by_name(experiment, workdir):
    warnings += of_other_parameters(experiment, workdir, first)
  seeds = []
  for folder, meta, source in sets:
    identity = meta['identity']
    hosts.say(f'evaluating {count:,} samples of {sample_set.origin(identity)} in {folder}')
    metrics = evaluator.measure_images(source, np.arange(count), folder / 'features')
    seeds.append({'seed': identity['seed'], 'metrics': metrics})
  folder, _, source = sets[0]
  speeds = [meta['images_per_s'] for _, meta, _ in sets if meta.get('images_per_s')]
  result = {
    'name': folder.name,
    **mean_over_seeds(seeds),
    'images_per_s': float(np.median(speeds)) if speeds else None,
    'protocol': evaluator.protocol(count, class_balance(experiment, first)),
    'samples': first,
    **made_by(evaluator, warnings),
  }
  if experiment.config.eval.neighbours and experiment.datasets.is_prepared():
    result['neighbours'] = draw_neighbours(experiment, evaluator, source, folder, workdir)
  return result


def with_other_seeds(experiment: Experiment, step: int) -> list[Experiment]:
  """Returns an experiment with a set name of its own for each further sampling seed, at the same step."""
  first, name = experiment.config.sample.seed, samples.set_name(experiment)
  each = []
  for seed in range(first + 1, first + experiment.config.eval.num_seeds):
    changed = {'seed': seed, 'name': f'{name}-seed{seed}', 'checkpoint': str(step)}
    values = {f'sample.{field}': value for field, value in changed.items()}
    each.append(with_settings(experiment, values))
  return each


def opened(experiment: Experiment, workdir: Path) -> tuple[Path, dict[str, Any], DataSource]:
  """Opens a complete sample set, made first if it is absent; returns folder, description and images.

  The set belongs to the checkpoint that config.sample.checkpoint names, unless config.sample.name names
  another set. Raises: InputError for an incomplete set, or one of other settings.
  """
  count = experiment.config.sample.num_samples
  if is_told_by_name(experiment, workdir):
    folder = samples.base_folder(experiment, workdir)
  else:
    folder = samples.find(experiment, workdir)
  if folder and hosts.from_first((folder / 'meta.json').exists):
    hosts.from_first(lambda: samples.is_complete(experiment, folder))
  else:
    folder = samples.complete(experiment, workdir)
  return folder, sample_set.read_meta(folder), sample_set.open_set(folder, count)


def is_told_by_name(experiment: Experiment, workdir: Path) -> bool:
  """Returns whether config.sample.name, given after training, names an existing set."""
  chosen = experiment.config.sample
  as_trained = stored.load(workdir).get('sample', {}).get('name', '')
  if chosen.name in ('', as_trained) or chosen.checkpoint != 'latest':
    return False
  return hosts.from_first((samples.base_folder(experiment, workdir) / 'meta.json').exists)


def of_other_parameters(
  experiment: Experiment, workdir: Path, found: Mapping[str, Any]
) -> list[str]:
  """Warns, on the screen too, if a set chosen by name does not belong to the newest checkpoint."""
  newest = samples.stored_identity(experiment, workdir)
  if not newest or all(found.get(key) == newest[key] for key in ('step', 'parameters')):
    return []
  warning = (
    f'the samples belong to {sample_set.origin(found)}, but the newest checkpoint is '
    f'{sample_set.origin(newest)}; measure that one with --config.sample.checkpoint={newest["step"]}'
  )
  hosts.say(f'warning: {warning}')
  return [warning]


def class_balance(experiment: Experiment, identity: Mapping[str, Any]) -> str:
  """Returns how the samples' classes were chosen, for the protocol."""
  if not experiment.config.num_classes:
    return 'unconditional'
  labels = identity['labels']
  return labels if isinstance(labels, str) else json.dumps(labels)


def likelihood_of(
  experiment: Experiment, weights: Weights, step: int, known: dict[str, dict[str, float]]
) -> dict[str, float]:
  """Returns the likelihood of held-out images, which is computed if it is not `known` already."""
  depends = {'step': step, 'average': experiment.config.sample.average, 'dtype': experiment.dtype}
  key = f'{depends} {likelihood_protocol(experiment)}'
  if key not in known:
    hosts.say(f'computing the likelihood of held-out images at step {step}')
    known[key] = likelihood.measure(experiment, weights)
  return known[key]


def likelihood_protocol(experiment: Experiment) -> dict[str, Any]:
  """Returns what the likelihood adds to the protocol of a result; {} if it is not asked for."""
  asked = experiment.config.eval.nll_num_images
  return {'nll': likelihood.protocol(experiment)} if asked else {}


def checked(evaluator: Evaluator, count: int) -> list[str]:
  """Prints and returns the warnings about the evaluation before anything takes long."""
  warnings = evaluator.check(count)
  for warning in warnings:
    hosts.say(f'warning: {warning}')
  for name, value in evaluator.network.notes.items():
    hosts.say(f'{evaluator.network.name}: {name.replace("_", " ")} {round(value, 4)}')
  return warnings


def made_by(evaluator: Evaluator, warnings: Sequence[str]) -> dict[str, Any]:
  """Returns what every result records about how it was made."""
  return {
    'parameters': cost.num_parameters(evaluator.experiment.abstract_state.params['model']),
    'features_notes': dict(evaluator.network.notes),
    'warnings': list(warnings),
    **provenance.of_result(),
  }


def mean_over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns 'metrics', the means; 'deviation' (sample, N - 1) of those that vary; and 'seeds' as given."""
  names = seeds[0]['metrics']
  values = {name: [each['metrics'][name] for each in seeds] for name in names}
  varying = [name for name in names if not name.endswith('_std') and len(seeds) > 1]
  return {
    'metrics': {name: float(np.mean(v)) for name, v in values.items()},
    'deviation': {name: float(np.std(values[name], ddof=1)) for name in varying},
    'seeds': list(seeds),
  }


def real_baseline(evaluator: Evaluator, num_samples: int) -> dict[str, Any] | None:
  """Measures as many training images; None without them, or where config.eval does not ask for it."""
  config, datasets = evaluator.experiment.config.eval, evaluator.experiment.datasets
  if not (config.real_baseline and config.backend == 'jax' and datasets.is_prepared()):
    return None
  train = datasets.images('train')
  count = min(num_samples, train.num_examples)
  indices = np.linspace(0, train.num_examples - 1, count).round().astype(int)
  metrics = evaluator.measure_images(train, indices, evaluator.cache)
  return {'num_images': count, 'metrics': metrics}


def draw_neighbours(
  experiment: Experiment, evaluator: Evaluator, source: DataSource, folder: Path, workdir: Path
) -> dict[str, float]:
  """Draws DIR/eval/NAME-neighbours.png: samples, each beside the nearest training images in feature space.

  Returns: the median distance to the nearest training image for these samples and for as many reference
  images; samples that are much nearer are copies.
  """
  train = evaluator.experiment.datasets.images('train')
  count = min(experiment.config.eval.neighbours, source.num_examples)
  chosen = np.linspace(0, source.num_examples - 1, count).round().astype(int)
  made = evaluator.features(source, chosen).features
  others = evaluator.features(train, np.arange(train.num_examples), evaluator.cache).features
  shown = min(NEIGHBOURS_SHOWN, len(others))
  found, distances = nearest(made, others, shown)
  near = train.read(found.reshape(-1))['image'].reshape(count, shown, *experiment.image_shape)
  batch = source.read(chosen)
  blank = np.full_like(near[:, :1], 255)  # Between a sample and what is near to it.
  rows = np.concatenate([batch['image'][:, None], blank, near], axis=1)
  names = [f'sample {number}' for number in chosen]
  path = workdir / 'eval' / f'{folder.name}-neighbours.png'
  hosts.from_first(lambda: files.write_png(path, images.grid(rows, names)))
  hosts.say(f'nearest training images of {count} samples: {path}')
  result = {'num_samples': count, 'nearest_training_image': float(np.median(distances[:, 0]))}
  real = evaluator.reference_features.features
  if real is not None:
    some = real[np.linspace(0, len(real) - 1, min(count, len(real))).round().astype(int)]
    result['of_reference_images'] = float(np.median(nearest(some, others, 1)[1]))
  return result


def result_path(workdir: Path, name: str, protocol: Mapping[str, Any]) -> Path:
  """Returns DIR/eval/NAME.json, with a suffix if that file holds a result of another protocol."""
  path = workdir / 'eval' / f'{name}.json'
  if path.exists() and (read_result(path, print) or {}).get('protocol') != protocol:
    digest = zlib.crc32(json.dumps(protocol, sort_keys=True).encode())
    return path.with_stem(f'{name}-{digest:08x}')
  return path


def write_result(result: Mapping[str, Any], workdir: Path) -> tuple[Path, dict[str, Any]]:
  """Writes the result beside those of other protocols. Returns: where, and the result as it is read back."""
  read_back = json.loads(json.dumps(result))  # Lists for tuples.
  path = result_path(workdir, read_back['name'], read_back['protocol'])
  files.write_json(path, read_back)
  return path, read_back
