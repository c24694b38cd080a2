"""From a parsed command to its stage: every mistake is one message."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_jax.config import presets
from diffusion_jax.config.listing import all_fields
from diffusion_jax.config.options import unknown
from diffusion_jax.config.sweep import Flags as Swept
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import from_data, resolve, stored
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import cluster, files, hosts
from diffusion_jax.usage import modes, usage

BEFORE_TRAINING = ('train', 'prepare', 'reference', 'bench')
ALONE = cluster.Flags()
# Flags of modes that print something else under them.
PAGES = {'json': ('describe', 'bench'), 'shardings': ('describe',), 'fields': ('describe',)}
GPU_SHARE = 'XLA_PYTHON_CLIENT_MEM_FRACTION'  # Of a GPU's memory; JAX takes 0.75 otherwise.
ALL_MEMORY = ('describe', 'train', 'sample')  # In the others PyTorch may need some.
SWEEPING = ('sweep', 'sweep_name', 'keep_samples')  # Flags of --mode=sweep.
NOT_SWEPT = Swept()
OF_RUNS = ('report',)  # The workdir holds the work directories of others.


def run_mode(
  mode: str,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
  workdir,
  *,
  as_json: bool = False,
  shardings: bool = False,
  fields: bool = False,
  joining: cluster.Flags = ALONE,
  swept: Swept = NOT_SWEPT,
) -> None:
  """Checks the mode, the work directory and the config, then runs the stage.

  as_json, shardings, fields: what is printed instead, see PAGES. joining: the other processes. swept: the
  flags of --mode=sweep.

  Raises: errors.Stop with the message and the exit code.
  """
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')  # TensorFlow only reads data here.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  if mode in ALL_MEMORY:
    os.environ.setdefault(GPU_SHARE, '0.9')
  if mode not in modes():
    raise InputError(unknown('--mode', mode, modes()))
  asked = {'json': as_json, 'shardings': shardings, 'fields': fields}
  for flag in [name for name in PAGES if asked[name]]:
    if mode not in PAGES[flag]:
      allowed = ' or '.join(f'--mode={name}' for name in PAGES[flag])
      raise InputError(f'--{flag}: got --mode={mode}, allowed only with {allowed}')
  if mode != 'sweep':
    for flag, value, unset in zip(SWEEPING, swept, NOT_SWEPT):
      if value != unset:
        raise InputError(f'--{flag}: got --mode={mode}, allowed only with --mode=sweep')
  config, overrides = presets.applied(config, overrides)
  if fields:
    print(all_fields(config), end='')
    return
  if not config['objective']['name']:  # configs/report.py has none.
    if mode not in OF_RUNS:
      raise InputError(
        f'--mode={mode}: this config describes a report, not a run; use --mode=report, or give the '
        'config of a run'
      )
    config = {**config, 'objective': {**config['objective'], 'name': 'denoising'}}
  stage = importlib.import_module(f'diffusion_jax.stages.{mode}')
  folder = Path(workdir).expanduser().absolute() if workdir else None
  if folder is None and mode != 'describe':
    raise InputError(f'--workdir is missing\n{usage()}')
  try:
    cluster.join(joining)
    with hosts.leaving():
      if mode in BEFORE_TRAINING:
        require_writable(folder)
      there = folder if folder and folder.is_dir() else None
      cluster.keep_logs(there)
      if there:
        hosts.require_shared(there)
      config = hosts.on_all(lambda: as_kept(mode, folder, config, overrides))
      page = {'as_json': as_json} if mode in PAGES['json'] else {}
      page |= {'shardings': shardings} if mode == 'describe' else {}
      page |= {'flags': swept._replace(given=tuple(overrides))} if mode == 'sweep' else {}
      run_stage(mode, stage, folder, config, overrides, **page)
  except OSError as error:
    message = files.message(error)
    if message is None:
      raise
    raise InputError(message) from error


def as_kept(
  mode: str, folder: Path | None, config: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Returns the config with what the work directory keeps of it."""
  config = from_data.as_stored(config, folder)
  return config if mode in OF_RUNS else resolve.remembered(folder, config, overrides)


def run_stage(
  mode: str, stage: ModuleType, folder: Path | None, config: Mapping, overrides: Mapping, **options
) -> None:
  """Runs the stage on what the work directory holds."""
  from diffusion_jax.run import Run
  from diffusion_jax.sampling import samples

  begins = mode in resolve.FROM_WEIGHTS and config.get('init_from') and not stored.is_begun(folder)
  given = meta = None
  if begins:
    require_writable(folder)
    restored = samples.begin(hosts.on_all(lambda: create(config)), folder)
    if mode in ('sample', 'sweep'):
      given = restored.state, restored.step  # They are read once.
    del restored
  if mode not in (*BEFORE_TRAINING, *OF_RUNS):
    config, meta = hosts.on_all(lambda: resolve.trained(mode, folder, config, overrides))
  stage.main(Run(hosts.on_all(lambda: create(config, meta)), folder, given), **options)


def require_writable(folder: Path) -> None:
  """Makes the folder. Raises: InputError if nothing can be written there."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f'.probe-{os.getpid()}'
    probe.touch()
    probe.unlink(missing_ok=True)  # Another command may just have removed what killed ones left.
  except OSError as error:
    raise InputError(f'--workdir={folder}: cannot write there ({error.strerror})') from error
