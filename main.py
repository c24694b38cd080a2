"""python main.py --config=configs/NAME.py --workdir=DIR [--mode=train] [--config.FIELD=VALUE ...]"""

import os
import sys

from diffusion_jax.runtime import interruption

if __name__ == '__main__':  # Not in the processes that decode images: they import this file.
  interruption.answer()

from absl import flags
from ml_collections import config_flags

from diffusion_jax.usage import help_text

CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/NAME.py, or DIR/config.json.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything of this run is kept.')
MODE = flags.DEFINE_string('mode', 'train', 'A module of diffusion_jax/stages.')
JSON = flags.DEFINE_bool('json', False, 'With --mode=describe: one JSON object.')
FIELDS = flags.DEFINE_bool('fields', False, 'With --mode=describe: every field of a config.')


def main() -> int:
  """The exit code: 0 done, 2 bad input, 3 damaged files, 4 diverged, 75 interrupted."""
  if {'-h', '--help'} & set(sys.argv):
    print(help_text())
    return 0
  from diffusion_jax.command import run_mode  # Here: other processes import this file again, and
  from diffusion_jax.errors import Stop  # start faster without.
  from diffusion_jax.parsing import parse

  try:
    config, overrides = parse(sys.argv, flags.FLAGS)
    page = {'as_json': JSON.value, 'fields': FIELDS.value}
    run_mode(MODE.value, config, overrides, WORKDIR.value, **page)
  except Stop as reason:
    print(f'main.py: {reason}', file=sys.stderr)
    return reason.exit_code
  except BrokenPipeError:  # As by `| head`: nobody reads on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt as interrupt:
    interruption.end(*interrupt.args)
  return 0


if __name__ == '__main__':
  sys.exit(main())
