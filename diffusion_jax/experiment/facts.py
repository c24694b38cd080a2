"""Counts parameters, operations and memory of a config, and advises where memory does not suffice."""

from collections.abc import Mapping
from typing import Any

import jax

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.pretrained.compvis import autoencoder_params
from diffusion_jax.reporting.tables import quantity
from diffusion_jax.runtime import chips, cost
from diffusion_jax.runtime.mesh import batch_shards

PARTS = ('state', 'gradient', 'activation', 'resident')  # Parts of the memory of training.
SMALLER_STATE = (
  'choose a smaller model (config.model), or cut the state over devices (--config.mesh.preset=fsdp)'
)


def facts(experiment: Experiment) -> dict:
  """Returns numbers about the model, the data and the training; bytes are those of one device."""
  config, objective, state = experiment.config, experiment.objective, experiment.abstract_state
  parts = state.weights().only(objective.network_parts).parts
  params, meta = state.params['model'], meta_if_prepared(experiment)

  one = objective.forward_inputs(1)
  local = objective.forward_inputs(config.train.batch_size // batch_shards(experiment.mesh))
  saved = cost.saved_for_backward(objective.forward, parts, *local)
  return {
    'model': config.model.name if objective.network else config.objective.name,
    'parameters': cost.num_parameters(params),
    'flops_per_image': cost.flops(objective.forward, parts, *one),
    'image_shape': list(experiment.image_shape),
    'space': config.space,
    'x0_shape': list(experiment.x0_shape),
    **autoencoder_facts(experiment),
    'num_classes': config.num_classes,
    'dtype': jax.numpy.dtype(experiment.dtype).name,
    'devices': experiment.mesh.size,
    'batch_size': config.train.batch_size,
    'steps': config.train.num_steps,
    'epochs': config.train.num_steps * config.train.batch_size / meta['num_train']
    if meta
    else None,
    'train_images': meta['num_train'] if meta else None,
    'holdout_images': meta['num_holdout'] if meta else None,
    'data_bytes': meta['images_bytes'] if meta else None,
    'resident_bytes_per_device': resident_bytes(experiment, meta),
    'data_fingerprint': meta['fingerprint'] if meta else None,
    'state_bytes_per_device': local_bytes(state),
    'gradient_bytes_per_device': local_bytes(params),
    'activation_bytes_per_device': max(saved - cost.num_bytes(params), 0),
    'device_bytes': cost.device_bytes(),
  }


def autoencoder_facts(experiment: Experiment) -> dict:
  """Counts the parameters and the operations an image of the autoencoder of a latent system."""
  if not experiment.is_latent:
    return {}
  module = experiment.autoencoder
  images, z = (
    jax.ShapeDtypeStruct((1, *shape), jax.numpy.float32)
    for shape in (experiment.image_shape, experiment.x0_shape)
  )
  params = {'params': autoencoder_params(module)}

  def flops(method, x):
    return cost.flops(lambda p, x: module.apply(p, x, method=method), params, x)

  return {
    'autoencoder_parameters': cost.num_parameters(params),
    'encode_flops_per_image': flops('encode', images),
    'decode_flops_per_image': flops('decode', z),
  }


def peak_images_per_s(experiment: Experiment, f: Mapping[str, Any]) -> float:
  """Returns the images/s of training at the peak of all devices: three passes forward an image."""
  limits = chips.limits(experiment.dtype)
  return limits.flops_per_s * experiment.mesh.size / (3 * f['flops_per_image'])


def needed_bytes(f: dict) -> int:
  """Sums the bytes that training takes on one device."""
  return sum(f[f'{part}_bytes_per_device'] for part in PARTS)


def memory_warnings(experiment: Experiment, f: dict) -> list[str]:
  """Says what to change where training needs more memory than a device has."""
  limit, config = f['device_bytes'], experiment.config
  if not limit or needed_bytes(f) <= limit:
    return []
  fixed = f['state_bytes_per_device'] + f['gradient_bytes_per_device']
  excess = f'{quantity(needed_bytes(f), "B")} are more than the {quantity(limit, "B")} of a device'
  if fixed > limit:
    return [f'{excess}, state and gradients alone: {SMALLER_STATE}']
  shards = batch_shards(experiment.mesh)
  helps = []
  if config.train.batch_size > shards:
    helps.append(f'a smaller --config.train.batch_size than {config.train.batch_size:,}')
  if experiment.objective.network and config.model.options.get('remat') == 'none':
    helps.append(f'--{config.model.section}.remat=blocks')
  if f['dtype'] == 'float32':
    helps.append('--config.dtype=bfloat16')
  if f['resident_bytes_per_device']:
    helps.append('--config.data.device_resident=False')
  return [f'{excess}; what helps: {", ".join([*helps, "more devices"])}']


def require_state_fits(experiment: Experiment) -> None:
  """Raises InputError, before anything is compiled, if the state alone does not fit a device."""
  needed, limit = local_bytes(experiment.abstract_state), cost.device_bytes()
  if limit and needed > limit:
    raise InputError(
      f'the training state takes {quantity(needed, "B")} a device, which has {quantity(limit, "B")}: '
      f'{SMALLER_STATE}'
    )


def meta_if_prepared(experiment: Experiment) -> Mapping[str, Any] | None:
  """Returns the description of the data, or None if none are prepared."""
  return experiment.meta if experiment.stored_meta or experiment.datasets.is_prepared() else None


def resident_bytes(experiment: Experiment, meta: Mapping[str, Any] | None) -> int:
  """Counts the bytes of the training examples that a device keeps."""
  if not (meta and experiment.config.data.device_resident):
    return 0
  return experiment.datasets.train_bytes(experiment.x0_shape if experiment.is_latent else None)


def local_bytes(tree) -> int:
  """Counts the bytes of one device's part of sharded arrays."""

  def part(x):
    return jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)

  return cost.num_bytes(jax.tree.map(part, tree))
