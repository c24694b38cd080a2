"""python main.py --config=configs/NAME.py --workdir=DIR [--mode=train] [--config.FIELD=VALUE ...]"""

import sys

from diffusion_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
