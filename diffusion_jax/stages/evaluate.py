"""--mode=evaluate: the metrics of a sample set against reference images, and what they mean.

Where nothing is sampled, as with an autoencoder, it measures the held-out images' reconstructions.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.config.schema import SPLITS
from diffusion_jax.data.arrays import Arrays
from diffusion_jax.diffusion.pixels import psnr
from diffusion_jax.errors import InputError
from diffusion_jax.evaluation.nearest_neighbours import nearest
from diffusion_jax.experiment import stored
from diffusion_jax.experiment.checks import check_data, check_devices, create
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.weights import load_checkpoint
from diffusion_jax.reporting import images
from diffusion_jax.reporting.results import evaluation_table
from diffusion_jax.reporting.runs import read_result
from diffusion_jax.runtime import cost, files, hosts, provenance
from diffusion_jax.sampling import sample_set, samples
from diffusion_jax.sampling.previews import Previews
from diffusion_jax.types import DataSource

NEIGHBOURS_SHOWN = 8  # Training images beside each sample.


def run(experiment: Experiment, workdir: Path) -> None:
  """Makes a sample set that is absent, measures, writes DIR/eval/NAME.json and prints a table.

  Raises: InputError for a set that is not complete, or was made otherwise, and for metrics that cannot
  be had of so few images.
  """
  check_devices(experiment)
  check_data(experiment)
  experiment = with_num_samples(experiment)
  if not experiment.datasets.is_prepared():
    hosts.say('no prepared images, so none are measured or shown beside the samples')
  evaluator = Evaluator(experiment)
  if experiment.objective.network:
    result = sample_result(evaluator, workdir)
  else:
    result = reconstruction_result(evaluator, workdir)
  config, there = experiment.config.eval, experiment.datasets.is_prepared()
  if config.real_baseline and config.backend == 'jax' and there:
    result['real_baseline'] = real_baseline(evaluator, result['protocol']['num_samples'])
  hosts.from_first(lambda: finish(result, workdir))


def with_num_samples(experiment: Experiment) -> Experiment:
  """The experiment with as many samples as config.eval asks for."""
  config = experiment.config
  count = config.eval.num_samples or config.sample.num_samples
  if count < 2:
    raise InputError(f'config.eval.num_samples: got {count}, allowed >= 2')
  mapping = stored.with_value(experiment.mapping, 'sample.num_samples', count)
  return create(mapping, experiment.stored_meta)


def sample_result(evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
  """What DIR/eval/NAME.json says of config.eval.num_seeds sample sets."""
  experiment = evaluator.experiment
  count = experiment.config.sample.num_samples
  if not is_told_by_name(experiment, workdir):
    samples.find(
      experiment, workdir
    )  # Refuses a set of other settings before a network is trained.
  warnings = checked(evaluator, count)
  sets = [opened(experiment, workdir)]
  first = sets[0][1]['identity']
  sets += [opened(each, workdir) for each in with_other_seeds(experiment, first['step'])]
  same = {key: value for key, value in first.items() if key != 'seed'}
  for folder, meta, _ in sets:  # As of one checkpoint: a mean over several is of none.
    sample_set.require_same(folder, meta['identity'], same)
  if is_told_by_name(experiment, workdir):
    warnings += of_other_parameters(experiment, workdir, first)
  seeds = []
  for folder, meta, source in sets:
    identity = meta['identity']
    hosts.say(f'evaluating {count:,} samples of {sample_set.origin(identity)} in {folder}')
    metrics = evaluator.measure_images(source, np.arange(count), folder / 'features')
    seeds.append({'seed': identity['seed'], 'metrics': metrics})
  folder, meta, source = sets[0]
  balance = class_balance(experiment, meta)
  speeds = [meta['images_per_s'] for _, meta, _ in sets if meta.get('images_per_s')]
  result = {
    'name': folder.name,
    **mean_over_seeds(seeds),
    'images_per_s': float(np.median(speeds)) if speeds else None,
    'protocol': evaluator.protocol(count, balance),
    'samples': first,
    **made_by(evaluator, warnings),
  }
  if experiment.config.eval.neighbours and experiment.datasets.is_prepared():
    result['neighbours'] = draw_neighbours(evaluator, source, folder, workdir)
  return result


def with_other_seeds(experiment: Experiment, step: int) -> list[Experiment]:
  """One experiment for each further sampling seed, with a name of its own, from the same checkpoint."""
  first, name = experiment.config.sample.seed, samples.set_name(experiment)
  each = []
  for seed in range(first + 1, first + experiment.config.eval.num_seeds):
    changed = {'seed': seed, 'name': f'{name}-seed{seed}', 'checkpoint': str(step)}
    mapping = {**experiment.mapping, 'sample': {**experiment.mapping['sample'], **changed}}
    each.append(create(mapping, experiment.stored_meta))
  return each


def opened(experiment: Experiment, workdir: Path) -> tuple[Path, dict[str, Any], DataSource]:
  """The folder of a complete sample set, its description and its images; made if there is none.

  The set is that of the checkpoint that is asked for, unless config.sample.name chooses another one.
  Raises: InputError for an incomplete one, or one of other settings.
  """
  count = experiment.config.sample.num_samples
  if is_told_by_name(experiment, workdir):
    folder = samples.base_folder(experiment, workdir)
  else:
    folder = samples.find(experiment, workdir)
  if folder and hosts.from_first((folder / 'meta.json').exists):
    hosts.from_first(lambda: samples.is_complete(experiment, folder))
    sample_set.open_parts(folder, count)
  else:
    folder = samples.complete(experiment, workdir)
  return folder, sample_set.read_meta(folder), sample_set.open_set(folder, count)


def is_told_by_name(experiment: Experiment, workdir: Path) -> bool:
  """Whether config.sample.name, no name of training's, chooses a set that is there."""
  chosen = experiment.config.sample
  as_trained = stored.load(workdir).get('sample', {}).get('name', '')
  if chosen.name in ('', as_trained) or chosen.checkpoint != 'latest':
    return False
  return hosts.from_first((samples.base_folder(experiment, workdir) / 'meta.json').exists)


def of_other_parameters(
  experiment: Experiment, workdir: Path, found: Mapping[str, Any]
) -> list[str]:
  """A warning, printed too, if a set that was chosen by its name is not of the newest checkpoint."""
  newest = samples.newest_identity(experiment, workdir)
  if not newest or all(found.get(key) == newest[key] for key in ('step', 'parameters')):
    return []
  warning = (
    f'the samples are of {sample_set.origin(found)}, the newest checkpoint is {sample_set.origin(newest)}; '
    f'--config.sample.checkpoint={newest["step"]} measures that'
  )
  hosts.say(f'warning: {warning}')
  return [warning]


def class_balance(experiment: Experiment, meta: Mapping[str, Any]) -> str:
  """How the samples' classes were chosen."""
  if not experiment.config.num_classes:
    return 'unconditional'
  labels = meta['identity']['labels']
  return labels if isinstance(labels, str) else json.dumps(labels)


def reconstruction_result(evaluator: Evaluator, workdir: Path) -> dict[str, Any]:
  """The same of images that the autoencoder encoded and decoded again: those of the reference."""
  experiment = evaluator.experiment
  if experiment.config.eval.reference not in SPLITS:
    raise InputError(
      f"config.eval.reference: got {experiment.config.eval.reference!r}, allowed 'holdout' or 'train', "
      'whose images the autoencoder reconstructs'
    )
  source = evaluator.reference.source
  count = min(experiment.config.eval.num_samples or source.num_examples, source.num_examples)
  warnings = checked(evaluator, count)
  restored = load_checkpoint(experiment, workdir)
  indices = np.linspace(0, source.num_examples - 1, count).round().astype(int)
  hosts.say(f'reconstructing {count:,} images by step {restored.step}')
  real = source.read(indices)['image']
  made = Previews(experiment).reconstruct(restored.state, real)
  error = (made.astype(np.float32) - real) / 127.5
  name = f'reconstruction-{restored.step}'
  metrics = evaluator.measure_images(Arrays(made, name), np.arange(count))
  metrics.pop('label_accuracy', None)
  path, drawn = workdir / 'eval' / f'{name}.png', images.pairs(real[:20], made[:20], 4)
  hosts.from_first(lambda: files.write_png(path, drawn))
  return {
    'name': 'reconstruction',
    **mean_over_seeds([{'seed': 0, 'metrics': {**metrics, 'psnr': float(psnr(error).mean())}}]),
    'images_per_s': None,
    'protocol': evaluator.protocol(count, 'of the reference'),
    'samples': {'step': restored.step, 'average': experiment.config.sample.average},
    **made_by(evaluator, warnings),
  }


def checked(evaluator: Evaluator, count: int) -> list[str]:
  """The warnings about what is to be measured, said before anything takes long."""
  warnings = evaluator.check(count)
  for warning in warnings:
    hosts.say(f'warning: {warning}')
  for name, value in evaluator.network.notes.items():
    hosts.say(f'{evaluator.network.name}: {name.replace("_", " ")} {round(value, 4)}')
  return warnings


def made_by(evaluator: Evaluator, warnings: Sequence[str]) -> dict[str, Any]:
  """What every result says of its making."""
  return {
    'parameters': cost.num_parameters(evaluator.experiment.abstract_state.params['model']),
    'features_notes': dict(evaluator.network.notes),
    'warnings': list(warnings),
    **provenance.of_result(),
  }


def mean_over_seeds(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """'metrics', their means; 'deviation' of those that vary (sample, N - 1); and 'seeds' as given."""
  names = seeds[0]['metrics']
  values = {name: [each['metrics'][name] for each in seeds] for name in names}
  varying = [name for name in names if not name.endswith('_std') and len(seeds) > 1]
  return {
    'metrics': {name: float(np.mean(v)) for name, v in values.items()},
    'deviation': {name: float(np.std(values[name], ddof=1)) for name in varying},
    'seeds': list(seeds),
  }


def real_baseline(evaluator: Evaluator, num_samples: int) -> dict[str, Any]:
  """The metrics of as many training images."""
  train = evaluator.experiment.datasets.images('train')
  count = min(num_samples, train.num_examples)
  indices = np.linspace(0, train.num_examples - 1, count).round().astype(int)
  metrics = evaluator.measure_images(train, indices, evaluator.cache)
  return {'num_images': count, 'metrics': metrics}


def draw_neighbours(
  evaluator: Evaluator, source: DataSource, folder: Path, workdir: Path
) -> dict[str, float]:
  """DIR/eval/NAME-neighbours.png: samples, and the training images nearest to each in feature space.

  Returns: median distances to the nearest training image, of these samples and of as many reference
  images: samples that are much nearer are copies.
  """
  experiment, train = evaluator.experiment, evaluator.experiment.datasets.images('train')
  count = min(experiment.config.eval.neighbours, source.num_examples)
  chosen = np.linspace(0, source.num_examples - 1, count).round().astype(int)
  samples = evaluator.features(source, chosen).features
  others = evaluator.features(train, np.arange(train.num_examples), evaluator.cache).features
  shown = min(NEIGHBOURS_SHOWN, len(others))
  found, distances = nearest(samples, others, shown)
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


def finish(result: dict[str, Any], workdir: Path) -> None:
  """Writes the result beside those of other protocols, and prints the table."""
  result = json.loads(json.dumps(result))  # As it will be read again: lists for tuples.
  path = result_path(workdir, result['name'], result['protocol'])
  files.write_json(path, result)
  print(evaluation_table(workdir / 'eval', result))
  print(f'written to {path}')


def result_path(workdir: Path, name: str, protocol: Mapping[str, Any]) -> Path:
  """DIR/eval/NAME.json, with a suffix if that holds a result of another protocol."""
  path = workdir / 'eval' / f'{name}.json'
  if path.exists() and (read_result(path, print) or {}).get('protocol') != protocol:
    digest = zlib.crc32(json.dumps(protocol, sort_keys=True).encode())
    return path.with_stem(f'{name}-{digest:08x}')
  return path
