"""Every field there is, with its default: a DiT-S/2 on digits. Other configs change what differs.

A choice is a `name` and one subsection per alternative; only the named one is used. The fields are
declared in diffusion_jax/config/schema.py, and the options of an alternative in its own file.
`python main.py --config=configs/base.py --mode=describe --fields` prints them all with what they mean, and
docs/config.md is that print-out.
"""

from ml_collections import ConfigDict

from diffusion_jax.config.fields import defaults, schema
from diffusion_jax.config.schema import Config


def get_config() -> ConfigDict:
  """The defaults."""
  return ConfigDict(defaults(schema(Config)))
