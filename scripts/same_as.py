"""Whether this checkout computes what another commit of it computes, bit for bit, on this machine.

    python scripts/same_as.py REF [--only=quickstart,vae,...] [--folder=DIR] [--config.FIELD=VALUE ...]

Checks REF out beside this tree and runs main.py of both: the autoencoder and the eight systems, made
small, and the quickstart at its size for 50 steps. REF takes the first step; both sides go on from its
checkpoint, because Flax draws initial parameters by module path, which a rebuild may change. Compares
every logged number, all arrays of the final checkpoint, the samples and their metrics, the order of the
data, and on each side a resumed run with an uninterrupted one. Prints what differs and exits 1 if
anything does. Flags --config.* go to both sides, as where a difference is meant and must be kept out.

Where names have changed since REF, the tables of compare_runs.py say how.
"""

import argparse
import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from compare_runs import (
  ARRAYS,
  FIELDS,
  FORMAT,
  RESHAPED,
  VALUES,
  arrays_of,
  as_here,
  compare,
  steps_of,
)

ROOT = Path(__file__).parents[1]
STEPS, MIDDLE = 21, 11  # REF takes one, each side 20 more; resumed in the middle.
LONG, LONG_MIDDLE = 51, 26
SYSTEMS = (
  *('ddpm', 'ddpm_cfg', 'ddpm_vae', 'ddpm_vae_cfg', 'ddim', 'ddim_vae_cfg'),
  *('dit_cfg:8', 'dit_cfg'),
)
LATENT = ('ddpm_vae', 'ddpm_vae_cfg', 'ddim_vae_cfg', 'dit_cfg:8', 'dit_cfg')
PIXEL_UNET = {'model.unet.attention_resolutions': (8,)}  # Sides of 16 px images; latents have 4.
UNCONDITIONAL = ('ddpm', 'ddpm_vae', 'ddim')
NAMES = ('quickstart', 'vae', *SYSTEMS)
SMALL = {
  'num_classes': 3,
  'data.class_list': 'all',
  'data.image_size': 16,
  'data.name': 'pictures',
  'model.dit.depth': 2,
  'model.dit.hidden_size': 32,
  'model.dit.num_heads': 2,
  'model.unet.attention_resolutions': (4,),
  'model.unet.channel_mult': (1, 1),
  'model.unet.channels': 32,
  'model.unet.head_channels': 16,
  'model.unet.num_res_blocks': 1,
  'vae.batch_size': 4,
  'vae.channel_mult': (1, 1, 1),
  'vae.channels': 32,
  'objective.autoencoder.discriminator_channels': 8,
  'objective.autoencoder.discriminator_layers': 1,
  'objective.autoencoder.discriminator_start': 6,
  'vae.num_res_blocks': 1,
  'objective.autoencoder.perceptual_weight': 0.0,
  'train.batch_size': 4,
  'eval.features.name': 'pixels',
  'eval.metrics': ('fid',),
  'sample.gif_frames': 3,
  'sample.num_samples': 6,
  'sample.num_steps': 4,
}
QUICKSTART = {'sample.num_samples': 100, 'sample.num_steps': 10, 'eval.neighbours': 0}


def flags_of(name: str, folder: Path, side: str, num_steps: int) -> dict[str, object]:
  """Config field -> value, in the names of this checkout, of one command."""
  middle = LONG_MIDDLE if name == 'quickstart' else MIDDLE
  every = 1 if num_steps == 1 else middle
  return {
    **(QUICKSTART if name == 'quickstart' else {**SMALL, 'data.source': str(folder / 'pictures')}),
    **({'num_classes': 0} if name in UNCONDITIONAL else {}),
    **(PIXEL_UNET if name in SYSTEMS and name not in LATENT else {}),
    **({'vae.checkpoint': str(folder / f'vae-{side}')} if name in LATENT else {}),
    'data.dir': str(folder / f'data-{side}'),
    'optimizer.warmup_steps': 0 if num_steps == 1 else 5,
    'checkpoint.every_steps': every,
    'checkpoint.keep_newest': 10,
    'train.holdout_every_steps': every,
    'train.log_every_steps': 1,
    'train.num_steps': num_steps,
    'train.preview_every_steps': 10_000,
  }


def record(phase: str, folder: Path, side: str, names: list[str], extra: list[str]) -> None:
  """Runs one side's commands in the tree that this process was started in.

  phase 'begin': the first step of each system. 'go': the rest, and what is made of it.
  """
  sys.path.insert(0, os.getcwd())
  _import_heavy()
  if phase == 'go' and side == 'here':  # REF's checkpoints name the data by their content.
    for name in ('quickstart', 'dit_pixel'):
      flags = {**flags_of(name, folder, side, STEPS), 'optimizer.warmup_steps': 0}
      _command(name, 'prepare', folder / side / f'prepare-{name}', flags, side, [])
  for name in names:
    workdir = folder / side / name.replace(':', '-')
    stop = LONG if name == 'quickstart' else STEPS
    if phase == 'begin':
      _command(name, 'train', workdir, flags_of(name, folder, side, 1), side, extra)
      if name == 'vae':
        shutil.copytree(workdir, folder / f'vae-{side}')
      continue
    flags = flags_of(name, folder, side, stop)
    _command(name, 'train', workdir, flags, side, extra)
    resumed = workdir.with_name(f'{workdir.name}-resumed')
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / 'checkpoints' / str(stop))
    if max(steps_of(resumed)) != (LONG_MIDDLE if name == 'quickstart' else MIDDLE):
      raise SystemExit(f'{resumed}: steps {steps_of(resumed)}: no checkpoint in the middle')
    _command(name, 'train', resumed, flags, side, extra)
    if name != 'vae':
      flags = {k: v for k, v in flags.items() if k.startswith(('sample.', 'eval.', 'data.dir'))}
      _command(name, 'evaluate', workdir, flags, side, [e for e in extra if 'optimizer' not in e])
  if phase == 'go':
    from diffusion_jax.data.pipeline import example_indices

    far = np.concatenate([np.arange(4000), 10**9 + np.arange(4000)])
    np.save(folder / side / 'order.npy', example_indices(3, 1797, far))


def _import_heavy() -> None:
  """Once for all commands, each of which is a fork."""
  import jax  # noqa: F401
  import matplotlib.pyplot  # noqa: F401
  import optax  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import tensorflow  # noqa: F401


def _command(name, mode, workdir, flags, side, extra) -> None:
  """main.py in a fork. Raises: SystemExit with its output if it fails."""
  file, _, argument = name.partition(':')
  named = flags if side == 'here' else {_ref_name(field): flags[field] for field in flags}
  argv = [
    'main.py',
    f'--config=configs/{file}.py' + (f':{argument}' if argument else ''),
    f'--workdir={workdir}',
    f'--mode={mode}',
    *(f'--config.{field}={value}' for field, value in named.items() if field),
    *extra,
  ]
  log = workdir.with_name(f'{workdir.name}-{mode}.log')
  log.parent.mkdir(parents=True, exist_ok=True)
  print(f'  {side}: {mode} {workdir.name}', flush=True)
  child = os.fork()
  if not child:
    with open(log, 'a') as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    sys.argv, code = argv, 1
    try:
      runpy.run_path('main.py', run_name='__main__')
    except SystemExit as stop:
      code = stop.code or 0
    except BaseException:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if code:
    raise SystemExit(
      f'{side}: exit {code}: {" ".join(argv)}\n' + '\n'.join(log.read_text().splitlines()[-15:])
    )


def _ref_name(field: str) -> str:
  """REF's name of a field; '' if it is not there. Runs in REF's tree, whose docs list its fields."""
  listed = Path('docs/config.md')
  if listed.is_file() and f'`{field}`' in listed.read_text():
    return field
  old = {new: old for old, new in FIELDS.items()}
  return old.get(field, field)


def translate(source: Path, target: Path) -> None:
  """REF's work directory as this checkout would have written it."""
  shutil.copytree(source, target)
  path = target / 'config.json'
  mapping = json.loads(path.read_text())
  for old, new in FIELDS.items():
    value = _take(mapping, old.split('.'))
    if new and value is not None:
      _put(mapping, new.split('.'), VALUES[new].get(value, value) if new in VALUES else value)
  mapping |= FORMAT
  path.write_text(json.dumps(mapping))
  if not ARRAYS and not RESHAPED:
    return
  import jax

  from diffusion_jax.experiment import stored
  from diffusion_jax.experiment.checks import create
  from diffusion_jax.runtime.checkpoint import Checkpoints

  def fitted(arrays, abstract):
    leaves, structure = jax.tree.flatten_with_path(abstract)
    names = [jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in leaves]
    arrays = as_here(arrays, {name: leaf.shape for name, (_, leaf) in zip(names, leaves)})
    return structure.unflatten(
      arrays[name].astype(leaf.dtype) for name, (_, leaf) in zip(names, leaves)
    )

  (step,), experiment = steps_of(target), create(stored.load(target))
  abstract = experiment.abstract_state
  state = fitted(arrays_of(source, step), abstract)
  shutil.rmtree(target / 'checkpoints')
  checkpoints = Checkpoints(target / 'checkpoints')
  checkpoints.save(step, jax.device_put(state, jax.tree.map(lambda x: x.sharding, abstract)), {})
  checkpoints.close()
  if (target / stored.AUTOENCODER).exists():
    mapping['vae']['fingerprint'] = _translate_autoencoder(target, experiment.autoencoder, fitted)
    path.write_text(json.dumps(mapping))


def _translate_autoencoder(target: Path, module, fitted: Callable) -> str:
  """Rewrites the copy of the autoencoder in a work directory. Returns: its fingerprint here."""
  from diffusion_jax.experiment import first_stage, stored
  from diffusion_jax.pretrained import compvis, weights

  path = target / stored.AUTOENCODER
  state, origin = (
    weights.read_state(path, allow_pickle=False),
    weights.read_metadata(path)['origin'],
  )
  params = fitted(state, compvis.autoencoder_params(module))
  first = first_stage.FirstStage(module, params, first_stage.fingerprint_of(params), origin)
  first_stage.save_copy(target, first, replace=True)
  return first.fingerprint


def _take(mapping: dict, keys: list[str]):
  """Removes a field and returns its value: None where REF has the name of this checkout."""
  for key in keys[:-1]:
    mapping = mapping.get(key, {})
  return mapping.pop(keys[-1], None)


def _put(mapping: dict, keys: list[str], value) -> None:
  for key in keys[:-1]:
    mapping = mapping.setdefault(key, {})
  mapping[keys[-1]] = value


def write_pictures(folder: Path) -> None:
  """train|val/CLASS/N.png: 12 + 6 smooth random pictures of three classes."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for split, count in (('train', 4), ('val', 2)):
    for label in ('ant', 'bee', 'cow'):
      (folder / split / label).mkdir(parents=True)
      for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((24, 20), Image.Resampling.BICUBIC).save(
          folder / split / label / f'{number}.png'
        )


@contextlib.contextmanager
def checkout(ref: str, parent: Path) -> Iterator[Path]:
  """A work tree of `ref`, removed afterwards. Raises: SystemExit if there is no such commit."""
  tree = parent / 'tree'
  git = ['git', '-C', str(ROOT)]
  made = subprocess.run(
    [*git, 'worktree', 'add', '--detach', '--force', str(tree), ref], capture_output=True, text=True
  )
  if made.returncode:
    raise SystemExit(f'same_as.py: {ref}: {made.stderr.strip().splitlines()[-1]}')
  try:
    yield tree
  finally:
    subprocess.run([*git, 'worktree', 'remove', '--force', str(tree)], capture_output=True)


def start(tree: Path, *arguments: str) -> subprocess.Popen:
  """This script's own process of one side."""
  flags = os.environ.get('XLA_FLAGS', '--xla_backend_optimization_level=0')
  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'xla'))
  environment = {'JAX_PLATFORMS': 'cpu', **os.environ, 'XLA_FLAGS': flags}
  environment |= {'JAX_COMPILATION_CACHE_DIR': cache, 'PYTHONPATH': str(tree)}
  return subprocess.Popen([sys.executable, __file__, *arguments], cwd=tree, env=environment)


def wait(*processes: subprocess.Popen) -> None:
  """Raises: SystemExit if one of them failed."""
  if any([process.wait() for process in processes]):
    raise SystemExit('same_as.py: a command failed, so nothing was compared')


def main() -> int:
  """0 if nothing differs, 1 if something does."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('ref', help='a commit, branch or tag')
  parser.add_argument('--only', default='', help=f'some of {",".join(NAMES)}')
  parser.add_argument('--folder', default='', help='keep what both sides wrote in this new folder')
  parser.add_argument('--side', default='', help=argparse.SUPPRESS)
  parser.add_argument('--phase', default='', help=argparse.SUPPRESS)
  known, extra = parser.parse_known_args()
  names = known.only.split(',') if known.only else list(NAMES)
  if set(names) - set(NAMES) or any(not flag.startswith('--config.') for flag in extra):
    parser.error(f'got {known.only!r} and {extra}, allowed of {NAMES} and --config.FIELD=VALUE')
  if set(names) & set(LATENT):
    names = ['vae', *(name for name in names if name != 'vae')]
  if known.phase == 'translate':
    translate(Path(known.ref), Path(known.folder))
    return 0
  if known.phase:
    record(known.phase, Path(known.folder), known.side, names, extra)
    return 0
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(known.folder or temporary).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_pictures(folder / 'pictures')
    common = ['--folder', str(folder), '--only', ','.join(names), *extra]
    with checkout(known.ref, Path(temporary)) as tree:
      print(f'the first step of {len(names)} systems, by {known.ref}', flush=True)
      wait(start(tree, known.ref, '--phase=begin', '--side=ref', *common))
      for name in [n.replace(':', '-') for n in names]:
        pair = str(folder / 'ref' / name), '--folder', str(folder / 'here' / name)
        wait(start(ROOT, *pair, '--phase=translate'))
      if 'vae' in names:
        shutil.copytree(folder / 'here' / 'vae', folder / 'vae-here')
      print('both sides from there', flush=True)
      sides = ((tree, 'ref'), (ROOT, 'here'))
      wait(*(start(t, known.ref, '--phase=go', f'--side={side}', *common) for t, side in sides))
    differences = compare(folder, names)
  print('\n'.join(differences) or f'the same as {known.ref}: {", ".join(names)}')
  return 1 if differences else 0


if __name__ == '__main__':
  sys.exit(main())
