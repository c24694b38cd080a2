"""A config checked: what no single field can say, each combination that cannot work as one line."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.config.fields import read, updated
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import from_data
from diffusion_jax.experiment.autoencoder import module_of
from diffusion_jax.experiment.evaluation_checks import count_problems, evaluation_problems
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.training_checks import training_problems
from diffusion_jax.models.attention import widest_head
from diffusion_jax.runtime.cost import device_bytes
from diffusion_jax.runtime.mesh import AXES, batch_shards
from diffusion_jax.training.objective import Objective

# Parts of an Experiment that depend neither on settings of what is trained nor on fingerprints.
KEPT = {
  *('abstract_state', 'compiled', 'decoder', 'dtype', 'first_stage', 'frozen', 'mesh', 'module'),
  *('objective', 'process', 'schedule'),
}
# The fields, or sections, on which these parts do not depend.
APART = ('sample', 'sampler', 'eval', 'report', 'data.fingerprint', 'vae.fingerprint')
MIN_LOG_SNR_EPS = -12.0  # Below, an error of eps is multiplied by over 400 in x0.


def create(mapping: Mapping[str, Any], stored_meta: Mapping[str, Any] | None = None) -> Experiment:
  """Reads and checks everything that the config alone decides, once from_data has completed it.

  Raises: InputError that lists every problem found; as from_data.resolved.
  """
  mapping = from_data.resolved(updated(Config, mapping, {}))
  problems: list[str] = []
  config = read(Config, mapping, 'config', problems)
  if config is None:
    _raise(problems)
  experiment = Experiment(config, mapping, stored_meta)
  _raise(config_problems(experiment))
  return experiment


def with_settings(
  experiment: Experiment, values: Mapping[str, Any], stored_meta: Mapping[str, Any] | None = None
) -> Experiment:
  """The experiment with other values of fields that a trained run may change, or other fingerprints.

  values: path -> value. What was built or read already stays if it does not depend on these.
  Raises: InputError as create.
  """
  problems: list[str] = []
  mapping = updated(Config, experiment.mapping, values)
  config = read(Config, mapping, 'config', problems)
  if config is None:
    _raise(problems)
  changed = Experiment(config, mapping, stored_meta or experiment.stored_meta)
  _ = experiment.compiled  # Both compile into it from now on.
  for name in _kept(values) & set(vars(experiment)):
    vars(changed)[name] = vars(experiment)[name]
  _raise(config_problems(changed))
  return changed


def _kept(paths: Iterable[str]) -> set[str]:
  """The parts of an experiment that do not depend on these fields."""
  sections = {path if path in APART else path.split('.')[0] for path in paths}
  if not sections <= {*APART}:
    return set()
  return KEPT if 'sampler' in sections else KEPT | {'sampler'}


def check_devices(experiment: Experiment) -> None:
  """Checks what depends on the devices, before anything is compiled.

  Raises: InputError that lists every problem found.
  """
  _raise(device_problems(experiment))


def check_data(experiment: Experiment) -> None:
  """Checks what depends on the description of the data, before they are read.

  Raises: InputError that lists every problem found.
  """
  _raise(data_problems(experiment))


def _raise(problems: list[str]) -> None:
  if problems:
    error = InputError(listed(problems))
    error.problems = tuple(problems)
    raise error


def listed(problems: list[str]) -> str:
  """One problem as it is; several as a list."""
  if len(problems) == 1:
    return problems[0]
  return '\n'.join([f'{len(problems)} problems:', *(f'  {problem}' for problem in problems)])


def _attempt(build: Callable, problems: list[str]):
  try:
    return build()
  except InputError as error:
    problems.append(str(error))
  return None


def config_problems(experiment: Experiment) -> list[str]:
  """Problems that the config alone shows."""
  config, problems = experiment.config, []
  schedule = _attempt(lambda: experiment.schedule, problems)
  if schedule is not None:
    _attempt(lambda: experiment.sampler, problems)
    problems += _grid_problems(experiment)
    problems += _variance_problems(experiment)
  # The devices decide what 'auto' is; the model is built again for them.
  dtype = jnp.float32 if config.dtype == 'float32' else jnp.bfloat16
  _attempt(lambda: config.model.build(out_channels=1, num_classes=0, dtype=dtype), problems)
  metrics = _attempt(experiment.metrics, problems)
  objective = _attempt(lambda: experiment.make_objective(dtype), problems)
  if objective is not None:
    problems += _objective_problems(experiment, objective)
    problems += training_problems(config, objective)
    problems += evaluation_problems(config, metrics or {}, objective)
  problems += _label_problems(experiment)
  problems += _latent_problems(config)
  problems += _rule_problems(config.mesh.rules)
  return list(dict.fromkeys(problems))


def _objective_problems(experiment: Experiment, objective: Objective) -> list[str]:
  """Problems of what is minimised with the other sections."""
  config, problems = experiment.config, []
  scale = config.sample.cfg_scale
  if config.space == 'latent' and not objective.network:
    problems.append(
      "config.space: got 'latent', allowed 'pixel' with config.objective.name "
      f'{config.objective.name!r}, which is trained on images'
    )
  by_label = scale != 1 and not experiment.has_guide
  if by_label and config.num_classes and objective.network and not objective.guided:
    problems.append(
      f'config.sample.cfg_scale: got {scale:g}, allowed 1 unless the model also learns without labels '
      f'(config.objective.{config.objective.name}.class_dropout > 0)'
    )
  if experiment.caching and objective.network:
    problems += _caching_problems(experiment, objective)
  if config.sample.average not in ('', *objective.averages):
    problems.append(
      f'config.sample.average: got {config.sample.average!r}, allowed '
      f"{', '.join(map(repr, objective.averages))}, or '' for the parameters as they are"
    )
  if config.space == 'latent' or not objective.network:
    module = _attempt(lambda: module_of(config, jnp.float32), problems)
    if module is not None and config.data.image_size % module.factor:
      problems.append(
        f'config.data.image_size: got {config.data.image_size}, allowed multiples of '
        f'{module.factor}: config.vae.channel_mult {module.channel_mult} halves it that often'
      )
  return problems


def _caching_problems(experiment: Experiment, objective: Objective) -> list[str]:
  sample, reason = experiment.config.sample, ''
  if objective.cachable is None:
    reason = (
      f'with config.model.name {experiment.config.model.name!r}, whose blocks cannot be left out'
    )
  elif sample.cfg_scale != 1 and experiment.has_guide:
    reason = 'with autoguidance: the guide would need a cache of its own'
  elif sample.cfg_scale != 1 and sample.guidance.options['interval']:
    reason = (
      'with config.sample.guidance.interval: steps in it and outside of it have different rows'
    )
  found = f'config.sample.cache.interval: got {experiment.caching.interval}, allowed 1'
  return [f'{found} {reason}'] if reason else []


def _latent_problems(config) -> list[str]:
  if config.space == 'pixel':
    return []
  problems = []
  if threshold := config.sample.guidance.options['threshold']:
    problems.append(
      f'config.sample.guidance.threshold: got {threshold:g}, allowed 0 in latent space, where values are '
      'not bounded by 1'
    )
  if config.sample.clip_x0:
    problems.append(
      'config.sample.clip_x0: got True, allowed False in latent space, where values are not '
      'bounded by 1 and clipping destroys the sample'
    )
  return problems


def _rule_problems(rules) -> list[str]:
  problems = []
  for rule in rules:
    expected = f"allowed (regular expression, (one of {AXES}, a tuple of them or '' a dimension))"
    try:
      pattern, axes = rule
      re.compile(pattern)
      names = [n for axis in axes for n in ((axis,) if isinstance(axis, str) else axis) if n]
    except (TypeError, ValueError, re.error) as error:
      problems.append(f'config.mesh.rules: got {rule!r} ({error}), {expected}')
      continue
    if isinstance(axes, str) or not set(names) <= set(AXES):
      problems.append(f'config.mesh.rules: got {rule!r}, {expected}')
  return problems


def _grid_problems(experiment: Experiment) -> list[str]:
  sample, prediction = experiment.config.sample, experiment.config.process.prediction_type
  try:
    times = experiment.times(sample.num_steps)
  except InputError as error:
    return [str(error)]
  if prediction not in ('eps', 'edm'):
    return []
  schedule = experiment.schedule
  ends_at_zero = float(schedule(jnp.float32(1)).alpha) == 0
  if ends_at_zero and (prediction == 'edm' or schedule.num_timesteps):
    return [
      f'config.process.prediction_type: got {prediction!r}, but with config.schedule.name '
      f'{experiment.config.schedule.name!r} as it is alpha is 0 at t = 1, where '
      + ('the network is fed sigma / alpha' if prediction == 'edm' else 'eps does not determine x0')
      + "; allowed 'v', 'x0', 'velocity'"
    ]
  if prediction == 'edm':
    return []
  alpha, sigma = (float(x) for x in schedule(jnp.float32(times[0])))
  log_snr = 2 * math.log(alpha / sigma) if alpha > 0 else -math.inf
  if alpha > 0 and (
    log_snr >= MIN_LOG_SNR_EPS or sample.clip_x0 or sample.guidance.options['threshold']
  ):
    return []
  return [
    f"config.process.prediction_type: got 'eps', but sampling with config.schedule.name "
    f'{experiment.config.schedule.name!r} starts at log SNR {log_snr:.1f}, where eps '
    + ('does not determine x0' if alpha == 0 else 'errors are amplified beyond use')
    + "; allowed 'v', 'x0', 'velocity'"
    + ('' if alpha == 0 else f', or clip_x0, or a schedule that ends above {MIN_LOG_SNR_EPS:g}')
  ]


def _variance_problems(experiment: Experiment) -> list[str]:
  config, problems = experiment.config, []
  learned, sampler = config.process.learned_variance, config.sampler
  if sampler.options.get('variance') == 'learned' and not learned:
    problems.append(
      f"{sampler.section}.variance: got 'learned', allowed 'fixed_small', "
      "'fixed_large' unless config.process.learned_variance is True"
    )
  if learned and getattr(experiment.schedule, 'num_timesteps', 0) < 2:
    problems.append(
      'config.process.learned_variance: got True, allowed False with config.schedule.name '
      f'{config.schedule.name!r} as it is: the bounds of the variance are those of the steps of a '
      'table of num_timesteps >= 2'
    )
  return problems


def _label_problems(experiment: Experiment) -> list[str]:
  config, problems = experiment.config, []
  if config.sample.cfg_scale != 1 and config.num_classes == 0 and not experiment.has_guide:
    problems.append(
      f'config.sample.cfg_scale: got {config.sample.cfg_scale:g}, allowed 1 (no guidance), because the '
      'model is unconditional (num_classes 0)'
    )
  channels = (
    config.vae.sizes['embed_channels'] if config.space == 'latent' else config.data.channels
  )
  if config.sample.guide_channels > channels:
    problems.append(
      f'config.sample.guide_channels: got {config.sample.guide_channels}, allowed 0 (all) to the '
      f'{channels} channels of what diffuses'
    )
  numbers = [y for y in config.sample.labels if config.num_classes == 0 or isinstance(y, int)]
  wrong = [y for y in numbers if isinstance(y, str) or not 0 <= y < max(config.num_classes, 1)]
  if wrong:
    allowed = f'0..{config.num_classes - 1}' if config.num_classes else 'none: it has no classes'
    problems.append(f'config.sample.labels: got {wrong}, allowed {allowed}')
  return problems + count_problems(config)


def device_problems(experiment: Experiment) -> list[str]:
  """Problems that only the devices show."""
  config, problems = experiment.config, []
  mesh = _attempt(lambda: experiment.mesh, problems)
  if mesh is None:
    return problems
  device = jax.devices()[0]
  if config.model.options.get('attention') == 'cudnn' and not widest_head(device):
    problems.append(
      f"{config.model.section}.attention: got 'cudnn', allowed 'auto', 'xla' on {device.device_kind} devices"
    )
    return problems
  parts, size = batch_shards(mesh) * config.train.accumulate, config.train.batch_size
  if size % parts:
    nearest = max(parts, round(size / parts) * parts)
    passes = f' times config.train.accumulate {config.train.accumulate}'
    problems.append(
      f'config.train.batch_size: got {size}, allowed multiples of the {batch_shards(mesh)} devices that '
      f'share a batch{passes if config.train.accumulate > 1 else ""} (nearest {nearest})'
    )
  _attempt(lambda: experiment.abstract_state, problems)
  return problems


def data_problems(experiment: Experiment) -> list[str]:
  """Problems that only the prepared data show."""
  config, meta, problems = experiment.config, experiment.meta, []
  count = len(experiment.label_names)
  if config.num_classes not in (0, count):
    problems.append(
      f'config.num_classes: got {config.num_classes}, allowed {count} (classes of the data set '
      f'{meta["name"]!r}) or 0 (unconditional)'
    )
  else:
    _attempt(lambda: experiment.chosen_labels, problems)
  if config.data.device_resident:
    latent_shape = experiment.x0_shape if experiment.is_latent else None
    needed = experiment.datasets.train_bytes(latent_shape)
    limit = device_bytes()
    if limit and needed > limit:
      problems.append(
        f'config.data.device_resident: got True, but {needed:,} bytes of examples do not fit into the '
        f'{limit:,} of a device; allowed False'
      )
  return problems
