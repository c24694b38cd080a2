"""The command: `python main.py` in a checkout, `diffusion-jax` where the package is installed.

Processes that decode images import this file again, so it imports nothing that takes time.
"""

import os
import sys

from diffusion_jax.runtime import compile_cache, huge_pages, interruption


def main() -> int:
  """Runs the command and returns its exit code, as errors.py lists them."""
  interruption.answer()  # Before anything else is imported.
  try:
    return run()
  except BrokenPipeError:  # `| head` stopped reading.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt as interrupt:
    interruption.end(*interrupt.args)
  return 0


def run() -> int:
  """Reads the flags and runs the mode. Returns the exit code, after printing a message if it is not 0."""
  if {'-h', '--help'} & set(sys.argv):
    from diffusion_jax import usage

    print(usage.help_text())
    return 0
  huge_pages.use()
  compile_cache.use()
  from absl import flags
  from ml_collections import config_flags

  from diffusion_jax.command import run_mode
  from diffusion_jax.config.sweep import Flags as Swept
  from diffusion_jax.errors import Stop
  from diffusion_jax.parsing import parse
  from diffusion_jax.runtime import cluster

  config_flags.DEFINE_config_file('config', None, 'A file, a name in configs/, or DIR/config.json.')
  workdir = flags.DEFINE_string('workdir', None, 'Where everything of this run is kept.')
  mode = flags.DEFINE_string('mode', 'train', 'A module of diffusion_jax/stages.')
  as_json = flags.DEFINE_bool('json', False, 'With --mode=describe or bench: one JSON object.')
  shardings = flags.DEFINE_bool('shardings', False, 'With --mode=describe: how arrays are cut.')
  fields = flags.DEFINE_bool('fields', False, 'With --mode=describe: every field of a config.')
  sweep = flags.DEFINE_multi_string(
    'sweep', [], 'With --mode=sweep: FIELD=V1,V2,...; several make a grid.'
  )
  sweep_name = flags.DEFINE_string('sweep_name', '', 'With --mode=sweep: the folder in DIR/sweeps.')
  keep_samples = flags.DEFINE_bool(
    'keep_samples', True, 'With --mode=sweep: keep measured samples.'
  )
  where = flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0, if there are several.')
  size = flags.DEFINE_integer('num_processes', None, 'Number of processes.')
  rank = flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.')
  try:
    config, overrides = parse(sys.argv, flags.FLAGS)
    page = {'as_json': as_json.value, 'shardings': shardings.value, 'fields': fields.value}
    joining = cluster.Flags(where.value, size.value, rank.value)
    swept = Swept(tuple(sweep.value), sweep_name.value, keep_samples.value)
    run_mode(mode.value, config, overrides, workdir.value, joining=joining, swept=swept, **page)
  except Stop as reason:
    cluster.complain(f'{os.path.basename(sys.argv[0])}: {reason}', reason)
    return reason.exit_code
  return 0
