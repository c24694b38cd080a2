"""Named settings of sampling: config.sample.preset. docs/sampling.md has what each costs and loses."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.config.fields import updated
from diffusion_jax.config.options import unknown
from diffusion_jax.config.schema import Config
from diffusion_jax.errors import InputError

FIELD = 'sample.preset'
PRESETS: Mapping[str, Mapping[str, Any]] = {
  'fast': {'sampler.name': 'unipc', 'sample.num_steps': 10},
  'balanced': {'sampler.name': 'unipc', 'sample.num_steps': 20},
  'best': {'sampler.name': 'unipc', 'sample.num_steps': 50},
}


def applied(
  config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
  """Applies the preset that is asked for: config and flags hold its values instead of its name.

  What is stored are the values, so a preset acts once. One that comes from a flag counts as the flags that it
  stands for. overrides: field -> value of flags, which go before the preset.
  Raises: InputError for an unknown one.
  """
  name = config['sample']['preset']
  if not name:
    return config, overrides
  if name not in PRESETS:
    raise InputError(unknown('config.sample.preset', name, list(PRESETS)))
  values = {field: value for field, value in PRESETS[name].items() if field not in overrides}
  given = {field: value for field, value in overrides.items() if field != FIELD}
  if FIELD in overrides:
    given |= values
  return updated(Config, config, {**values, FIELD: ''}), given
