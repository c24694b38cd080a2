"""python main.py --config=configs/NAME.py --workdir=DIR [--mode=train] [--config.FIELD=VALUE ...]"""

import os
import signal
import sys
from traceback import walk_stack

ADVICE = 'the same command goes on from what is finished'
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 75}


def stop(number, frame) -> None:
  """Raises KeyboardInterrupt; within an import, which may lose an exception, it ends at once."""
  if any(f.f_code.co_filename.startswith('<frozen importlib') for f, _ in walk_stack(frame)):
    os.write(2, f'main.py: {signal.Signals(number).name}: {ADVICE}\n'.encode())
    os._exit(EXIT_CODES[number])
  raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == '__main__':  # Not in the processes that decode images: they import this file.
  for number in EXIT_CODES:
    signal.signal(number, stop)

from absl import flags  # noqa: E402 (A signal may arrive during these.)
from ml_collections import config_flags  # noqa: E402

from diffusion_jax.usage import help_text  # noqa: E402

CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/NAME.py, or DIR/config.json.')
WORKDIR = flags.DEFINE_string('workdir', None, 'Where everything of this run is kept.')
MODE = flags.DEFINE_string('mode', 'train', 'A module of diffusion_jax/stages.')
JSON = flags.DEFINE_bool('json', False, 'With --mode=describe: one JSON object.')


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
    run_mode(MODE.value, config, overrides, WORKDIR.value, as_json=JSON.value)
  except Stop as reason:
    print(f'main.py: {reason}', file=sys.stderr)
    return reason.exit_code
  except BrokenPipeError:  # As by `| head`: nobody reads on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  except KeyboardInterrupt as interrupt:
    print(f'main.py: {interrupt}: {ADVICE}', file=sys.stderr)
    return EXIT_CODES[signal.Signals[str(interrupt)]]
  return 0


if __name__ == '__main__':
  sys.exit(main())
