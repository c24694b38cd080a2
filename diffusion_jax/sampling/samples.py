"""Sample sets of a work directory: which one a config means, and making what is missing of it."""

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.data import adm, class_names, image_folder
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import agreement, datasets, first_stage, stored
from diffusion_jax.experiment.checks import check_data, check_devices, with_settings
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.guide import Guide, opened
from diffusion_jax.experiment.weights import (
  chosen_step,
  initial_weights,
  load_checkpoint,
  open_checkpoints,
  paths_of,
)
from diffusion_jax.models.latents import Scaling
from diffusion_jax.runtime import files, hosts, lease
from diffusion_jax.runtime.checkpoint import Restored, checksums
from diffusion_jax.sampling import guided, sample_set
from diffusion_jax.sampling.generation import generate_parts
from diffusion_jax.sampling.pictures import draw_grid, is_animated
from diffusion_jax.training.state import Weights


def complete(
  experiment: Experiment, workdir: Path, given: tuple[Weights, int] | None = None
) -> Path:
  """Makes what is missing of the sample set, its pictures and exports. Returns: its folder.

  given: the weights and their step, if they have been read already.
  """
  require_diffusion(experiment)
  check_devices(experiment)
  check_data(experiment)
  wanted = experiment.config.sample.num_samples
  folder = find(experiment, workdir)
  if folder and hosts.from_first(lambda: is_finished(experiment, folder)):
    hosts.say(f'{folder}: 0 of {wanted:,} samples to make')
  else:
    folder = make(experiment, workdir, given)
  hosts.from_first(lambda: export(experiment, folder))
  hosts.say(f'done: grid.png, denoising.gif and {wanted:,} samples in {folder}')
  return folder


def begin(experiment: Experiment, workdir: Path) -> Restored:
  """Keeps what sampling the weights of config.init_from needs, once they are known to fit.

  That is config.json, data.json and a copy of the autoencoder: neither data nor training, and the
  weights stay where they are. Called by every process. Returns: as load_checkpoint.
  Raises: as initial_weights.
  """
  check_devices(experiment)
  agreement.require_same_images(experiment.datasets)
  meta, found = datasets.meta_without_data(experiment.config), {}
  if experiment.config.data.fingerprint or experiment.datasets.is_prepared():
    meta = experiment.meta
    found['data.fingerprint'] = meta['fingerprint']
  if experiment.is_latent:
    found['vae.fingerprint'] = experiment.first_stage.fingerprint
  described = with_settings(experiment, found, meta)
  check_data(described)
  restored = initial_weights(described)

  def save():
    if experiment.is_latent:
      first_stage.save_copy(workdir, experiment.first_stage, replace=True)
    stored.save_meta(workdir, meta)
    stored.save(workdir, described.mapping)

  hosts.from_first(save)
  hosts.say(f'nothing was trained in {workdir}: beginning with config.init_from')
  return restored


def make(experiment: Experiment, workdir: Path, given: tuple[Weights, int] | None = None) -> Path:
  """Samples what is missing, and draws. Returns: the folder of the set.

  Raises: InputError if there is no such checkpoint, or the folder holds a set of other settings.
  """
  if given is None:
    restored = load_checkpoint(experiment, workdir)
    given = restored.state, restored.step
  weights, step = given
  _ = experiment.decoder  # Fails on a bad autoencoder before a folder is made.
  guide = guided.load_guide(experiment, workdir, weights.scaling)
  wanted = identity(experiment, step, checksums(weights.parts).values(), weights.scaling)
  if guide:
    wanted['guide'] = guided.identity_of(guide.step, checksums(guide.parts).values())
  base = base_folder(experiment, workdir)
  folder = Path(hosts.from_first(lambda: str(sample_set.place(base, wanted))))
  if folder != base and not (folder / 'meta.json').exists():
    hosts.say(f'{base} holds samples of other parameters, so these go beside it')
  with lease.held(folder / 'sample.lease', f'sampling {folder}'):
    fill(experiment, folder, weights, wanted, guide)
  return folder


def fill(
  experiment: Experiment,
  folder: Path,
  weights: Weights,
  wanted: Mapping[str, Any],
  guide: Guide | None = None,
) -> None:
  """Makes the samples that the folder lacks, and draws them.

  wanted: the identity of the set. Raises: InputError if the folder holds another.
  """
  sample = experiment.config.sample

  def begin():
    files.remove_leftovers(folder)
    sample_set.claim(folder, wanted)
    return sample_set.stored_indices(folder).tolist(), is_animated(folder)

  done, animated = hosts.from_first(begin)  # The same for all, whatever another one writes next.
  missing = np.setdiff1d(np.arange(sample.num_samples, dtype=np.uint32), done)
  hosts.say(
    f'{folder}: {len(missing):,} of {sample.num_samples:,} samples to make, from '
    f'{sample_set.origin(wanted)}'
  )
  images_per_s, evaluations = None, experiment.generator().evaluations()
  if len(missing) or not animated:
    images_per_s = generate_parts(experiment, folder, weights, missing, animated, guide)
    hosts.gather(None)  # The first looks for the parts of all.

  def finish():
    draw_grid(experiment, folder)
    meta = sample_set.read_meta(folder)
    if len(missing):
      meta.setdefault('images_per_s', images_per_s)
    meta.setdefault('evaluations', evaluations)
    meta['num_samples'] = len(done) + len(missing)
    files.write_json(folder / 'meta.json', meta)

  hosts.from_first(finish)


def require_diffusion(experiment: Experiment) -> None:
  """Raises: InputError for a work directory of an autoencoder, which makes no images of its own."""
  if not experiment.objective.network:
    raise InputError(
      f'config.objective.name: this work directory trains an {experiment.config.objective.name}, which '
      'has no samples; its reconstructions are in previews/, its metrics in metrics.jsonl'
    )


def set_name(experiment: Experiment) -> str:
  """config.sample.name, or sampler, steps and guidance, as in 'ddim50-cfg2' or 'ddim50-cfg2-interval0.3_5'."""
  sample = experiment.config.sample
  default = f'{experiment.config.sampler.name}{sample.num_steps}-cfg{sample.cfg_scale:g}'
  if caching := experiment.caching:
    default += f'-cache{caching.interval}_{caching.order}_{caching.first}'
  return sample.name or default + guided.suffix(experiment)


def base_folder(experiment: Experiment, workdir: Path) -> Path:
  """Returns the folder of the first set of these settings; sets of other parameters lie beside it."""
  return workdir / 'samples' / set_name(experiment)


def identity(
  experiment: Experiment, step: int, sums: Iterable[int], scaling: Scaling | None = None
) -> dict[str, Any]:
  """Returns all that the images depend on. sums: the checksums of all parameters."""
  latents = {'autoencoder': experiment.config.vae.fingerprint} if experiment.is_latent else {}
  if scaling is not None:
    shift, scale = jax.device_get(scaling)
    latents |= {'latent_shift': shift.tolist(), 'latent_scale': float(scale)}
  return {**guided.identity_of(step, sums), **latents, **settings(experiment)}


def settings(experiment: Experiment) -> dict[str, Any]:
  """Returns the settings that the images depend on besides the parameters."""
  config, sample = experiment.config, experiment.config.sample
  counts = {'counts': list(sample.label_counts)} if sample.label_counts else None
  return {
    'average': sample.average,
    'dtype': np.dtype(experiment.dtype).name,
    'seed': sample.seed,
    'sampler': config.sampler.name,
    **{f'sampler.{name}': value for name, value in config.sampler.options.items()},
    'num_steps': sample.num_steps,
    'spacing': sample.spacing.name,
    **{f'spacing.{name}': value for name, value in sample.spacing.options.items()},
    'cfg_scale': sample.cfg_scale,
    'guide_channels': sample.guide_channels,
    'guidance': guided.settings(experiment),
    'cache': dataclasses.asdict(experiment.caching) if experiment.caching else None,
    'clip_x0': sample.clip_x0,
    'labels': counts or list(experiment.chosen_labels) or 'balanced',
    'data': config.data.fingerprint,
  }


def is_complete(experiment: Experiment, folder: Path) -> bool:
  """Returns whether all samples are stored. Raises: InputError if the folder's set has other settings."""
  if not (folder / 'meta.json').exists():
    return False
  found = sample_set.read_meta(folder)['identity']
  sample_set.require_same(folder, found, settings(experiment))
  wanted = np.arange(experiment.config.sample.num_samples)
  return bool(np.isin(wanted, sample_set.stored_indices(folder)).all())


def is_finished(experiment: Experiment, folder: Path) -> bool:
  """Returns whether all samples and pictures are there. Raises: as is_complete."""
  return is_complete(experiment, folder) and is_animated(folder) and (folder / 'grid.png').exists()


def find(experiment: Experiment, workdir: Path) -> Path | None:
  """Returns the folder of the set of config.sample.checkpoint, whether or not it exists yet.

  Reads no parameters: the checkpoint's own checksums tell which set belongs to it. Finds a set of
  config.sample.checkpoint=STEP after the checkpoint is gone, too.
  Returns: None where only the parameters themselves can tell, as those of config.init_from.
  Raises: InputError if several sets may be meant.
  """
  asked, base = experiment.config.sample.checkpoint, base_folder(experiment, workdir)
  gone = stored.has_checkpoint(workdir) and asked.isdigit()
  gone = gone and not (workdir / 'checkpoints' / str(int(asked))).exists()
  wanted = stored_identity(experiment, workdir)

  def look() -> str | None:
    if not gone:
      return str(sample_set.place(base, wanted)) if wanted else None
    sets = sample_set.of_step(base, int(asked))
    kept = [path for path in sets if is_complete(experiment, path)]
    if len(kept) > 1:
      raise InputError(
        f'config.sample.checkpoint: got {asked}, which is stored no longer; {len(kept)} sets are of that '
        f'step, choose one by config.sample.name: {", ".join(path.name for path in kept)}'
      )
    return str(kept[0]) if kept else None

  found = hosts.from_first(look)
  return Path(found) if found else None


def stored_identity(experiment: Experiment, workdir: Path) -> dict[str, Any] | None:
  """Returns the `identity` of config.sample.checkpoint without the latents' scaling.

  Returns: None if there is no such checkpoint or its checksums are unreadable, which restoring reports.
  """
  if not stored.has_checkpoint(workdir):
    return None
  checkpoints = open_checkpoints(experiment, workdir, read_only=True)
  try:
    step = chosen_step(experiment, checkpoints)
    sums = json.loads((checkpoints.directory / str(step) / 'checksums' / 'metadata').read_text())
    paths = tuple(f'{"/".join(path)}/' for path in paths_of(experiment).values())
    sums = [value for name, value in sums.items() if name.startswith(paths)]
  except (InputError, *files.NOT_JSON, AttributeError):
    return None
  finally:
    checkpoints.close()
  if not sums:
    return None
  found = identity(experiment, step, sums)
  if guided.is_autoguided(experiment):
    guide = stored_identity(*opened(experiment, workdir))
    if guide is None:
      return None
    found['guide'] = {'step': guide['step'], 'parameters': guide['parameters']}
  return found


def export(experiment: Experiment, folder: Path) -> None:
  """Writes what config.sample.export names, unless it is there and of this set as it is."""
  sample = experiment.config.sample
  if not sample.export:
    return
  stored = sample_set.open_parts(folder, sample.num_samples)
  made_of = json.dumps([sample_set.read_meta(folder)['identity'], sample.num_samples])
  if 'npz' in sample.export:
    path, comment = folder / 'samples.npz', f'{zlib.crc32(made_of.encode()):08x}'
    if adm.comment_of(path) != comment:
      adm.write_images(path, stored, comment)
    print(f'exported: {path}')
  if 'png' in sample.export:
    classes = class_names.folder_names(experiment.label_names)
    parents = [classes[label] for label in stored.labels] if experiment.config.num_classes else ()
    written = image_folder.write(folder / 'png', stored, parents)
    print(f'exported: {folder / "png"} ({written:,} files written)')
