"""--mode=train: trains a work directory, or resumes it, up to config.train.num_steps."""

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.config.schema import Optimizer
from diffusion_jax.data.pipeline import carrier, example_indices, train_batches
from diffusion_jax.errors import Interrupted
from diffusion_jax.experiment import facts, first_stage, initial, preparation, stored
from diffusion_jax.experiment.checks import check_data, check_devices, create, with_settings
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.initial import Initial
from diffusion_jax.experiment.profile import Profile
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.reporting.tables import quantity
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts, lease, logging, mesh
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.runtime.interruption import Interruption
from diffusion_jax.runtime.patience import alive
from diffusion_jax.runtime.watchdog import Watchdog
from diffusion_jax.sampling.previews import Previews
from diffusion_jax.training import dispatch
from diffusion_jax.training.loop import Action, run_loop
from diffusion_jax.training.optimizer import learning_rate_schedule
from diffusion_jax.types import PyTree

NEXT = '--mode=sample or evaluate'


def main(run: Run) -> None:
  """Trains or resumes.

  Raises: Interrupted after a signal, with a checkpoint written; DivergedError; InputError.
  """
  with lease.held(run.workdir / 'train.lease', f'training in {run.workdir}'):
    _train(run.experiment, run.workdir)


def _train(experiment: Experiment, workdir: Path) -> None:
  check_devices(experiment)
  facts.require_state_fits(experiment)
  _ = experiment.frozen  # Fails on missing weights before anything is prepared or written.
  carrier(experiment.config.data.loader)  # Fails if the config wants TensorFlow and it is missing.
  given = None if stored.has_checkpoint(workdir) else initial.load(experiment)
  experiment, changed = with_data(experiment, workdir)
  config = experiment.config
  if config.logging.wandb_project:
    logging.require_wandb()
  peak = announce(experiment, workdir)
  checkpoints = open_checkpoints(experiment, workdir)
  began = time.perf_counter()
  with Interruption() as interruption, contextlib.closing(checkpoints):
    state, start = restore_or_init(experiment, checkpoints, workdir, given)
    if experiment.is_latent:
      print(f'latents are scaled by {float(jax.device_get(state.scaling.scale)):.5f}')
    for change in changed:
      print(f'changed since the checkpoint: config.{change}')
    if change := changed_learning_rate(experiment, workdir, start):
      print(change)
    if start >= config.train.num_steps:
      print(f'already trained to step {start} of {config.train.num_steps}: nothing to do')
      return
    hosts.from_first(lambda: write_records(experiment, workdir, start))
    writer = logging.create_writer(
      workdir, wandb_project=config.logging.wandb_project, config=dict(experiment.mapping)
    )
    with contextlib.closing(writer):
      values = train(experiment, workdir, checkpoints, writer, state, start, interruption, peak)
  after = NEXT if experiment.objective.network else 'config.vae.checkpoint of latent systems'
  took = datetime.timedelta(seconds=round(time.perf_counter() - began))
  print(
    f'done: {config.train.num_steps:,} steps in {workdir}; loss {values["loss"]:.4f}, '
    f'{values["images_per_s"]:,.0f} images/s, {took} in all; next: {after}'
  )


def write_records(experiment: Experiment, workdir: Path, start: int) -> None:
  """Writes what describes the run, and drops the metrics of steps after `start`."""
  stored.save(workdir, experiment.mapping)
  stored.save_meta(workdir, experiment.meta)
  if experiment.is_latent:
    first_stage.save_copy(workdir, experiment.first_stage, replace=start == 0)
  logging.keep_until(workdir, start)


def with_data(experiment: Experiment, workdir: Path) -> tuple[Experiment, list[str]]:
  """Prepares the data if necessary and notes their fingerprints in the config.

  Returns: the experiment, and the fields that changed since the checkpoint. Raises: InputError if the
  checkpoint or the data do not fit the config.
  """
  changed = []
  if stored.has_checkpoint(workdir):
    mapping = as_begun(workdir, stored.as_trained(workdir, experiment.mapping))
    changed = stored.changes(workdir, mapping)
    experiment = create(mapping)
  if experiment.is_latent:
    _ = experiment.first_stage  # Fails on a bad autoencoder before images are prepared.
  preparation.ensure(experiment, workdir)
  found = {'data.fingerprint': experiment.meta['fingerprint']}
  if experiment.is_latent:
    found['vae.fingerprint'] = experiment.first_stage.fingerprint
  experiment = with_settings(experiment, found)
  check_data(experiment)
  hosts.on_all(experiment.open_data)
  return experiment, changed


def as_begun(workdir: Path, mapping: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the mapping with the config.init_from that `workdir` began with; reports a differing one."""
  began, given = stored.load(workdir).get('init_from', ''), mapping['init_from']
  if given not in ('', began):
    print(
      f'config.init_from: {given} is not read, because {workdir} has a checkpoint to resume from'
    )
  return {**mapping, 'init_from': began}


def train(
  experiment: Experiment,
  workdir: Path,
  checkpoints: Checkpoints,
  writer,
  state: PyTree,
  start: int,
  interruption: Interruption,
  peak: float,
) -> Mapping[str, float]:
  """Runs the loop with its actions in this order: held-out loss, preview, metrics, checkpoint.

  peak: images/s at the peak of the devices. Returns: the last line of the log. Raises: Interrupted.
  """
  config, previews = experiment.config, Previews(experiment, interruption.point)
  count, evaluator = config.train.eval_num_samples, Evaluator(experiment)
  evaluates = config.train.eval_every_steps > 0
  if evaluates:
    get_ready(evaluator, count)
  measured: dict[int, dict[str, float]] = {}  # Step -> metrics, of the latest step only.
  held_out_at, saved_at = None, start if start else None

  def note(step, found):
    if step not in measured:
      measured.clear()
    measured.setdefault(step, {}).update(found)
    writer.write_scalars(step, found)

  def write(step, values):
    writer.write_scalars(step, {**values, 'mfu': values['images_per_s'] / peak})

  def measure(step, state):
    nonlocal held_out_at
    if held_out_at != step:
      with alive(f'measuring held-out images at step {step}'):
        note(step, experiment.measure(state.weights(), interruption.point))
      held_out_at = step

  def preview(step, state):
    with alive(f'drawing the preview of step {step}'):
      picture = previews.picture(state.weights())
    if hosts.is_first():
      files.write_png(workdir / 'previews' / f'step_{step:08d}.png', picture)
    writer.write_images(step, {'preview': picture[None]})
    writer.flush()

  def evaluate(step, state):
    with alive(f'sampling for the metrics of step {step}'):
      features = previews.features(state.weights(), evaluator, count)
    found = evaluator.measure(features)
    note(step, {f'{name}@{count}': value for name, value in found.items()})

  def save(step, state):
    nonlocal saved_at
    with alive(f'writing the checkpoint of step {step}'):
      checkpoints.save(step, state, measured[step])
    saved_at = step

  def save_now(step, state):
    with alive(f'writing the checkpoint of step {step}'):
      if saved_at != step:  # No time to measure.
        checkpoints.save(step, state, {})
      checkpoints.wait()

  def note_skipped(step, values):
    first = (step - 1) * config.train.batch_size
    positions = np.arange(first, first + config.train.batch_size)
    examples = example_indices(config.seed, experiment.train_data.num_examples, positions).tolist()
    loss, norm = float(values['loss']), float(values['grad_norm'])
    tqdm.write(
      f'step {step:,} changed nothing: loss {loss:.4g}, gradient norm {norm:.4g}; {logging.SKIPPED}'
    )
    if hosts.is_first():
      logging.note_skipped(workdir, step, {'loss': loss, 'grad_norm': norm}, examples)

  (workdir / 'previews').mkdir(exist_ok=True)
  batches = train_batches(
    experiment.step_input,
    seed=config.seed,
    batch_size=config.train.batch_size,
    start_step=start,
    stop_step=config.train.num_steps,
    rows=mesh.local_rows(experiment.mesh, config.train.batch_size),
    loader=config.data.loader,
  )
  groups = dispatch.grouped(batches, start, config.train.steps_per_dispatch)
  one, several = mesh.batch_sharding(experiment.mesh), mesh.stacked_sharding(experiment.mesh)
  print('compiling the training step', flush=True)
  compiled = experiment.compile_steps(start, config.train.steps_per_dispatch)
  hosts.gather(None)  # Another process may compile for longer than the watchdog waits.

  profile = Profile(config.train.profile_steps, workdir, tqdm.write)

  @profile.around
  def train_step(step, state, batch, count):
    checkpoints.check()
    return compiled(step, state, batch, count)

  with Watchdog(config.train.watchdog_seconds, workdir) as watchdog:
    outcome = run_loop(
      train_step,
      state,
      ((n, mesh.to_devices(batch, one if n == 1 else several)) for n, batch in groups),
      start=start,
      stop=config.train.num_steps,
      batch_size=config.train.batch_size,
      log_every_steps=config.train.log_every_steps,
      learning_rate=learning_rates(experiment, start),
      write=write,
      actions=(
        Action(config.train.holdout_every_steps, measure),
        Action(config.train.preview_every_steps, preview),
        *([Action(config.train.eval_every_steps, evaluate)] if evaluates else []),
        Action(config.checkpoint.every_steps, measure),  # Ranks the checkpoint.
        Action(config.checkpoint.every_steps, save, breakable=False),
      ),
      max_skipped=config.train.max_skipped,
      interruption=interruption,
      save=save_now,
      watchdog=watchdog,
      note_skipped=note_skipped,
    )
  profile.close()
  batches.close()  # Nothing is read ahead while the last checkpoint is written.
  save_now(outcome.step, outcome.state)
  if outcome.step < config.train.num_steps:
    raise Interrupted(
      f'{interruption.requested} at step {outcome.step}: checkpoint written to {checkpoints.directory}; '
      'run the same command to go on from there'
    )
  return outcome.values


def changed_learning_rate(experiment: Experiment, workdir: Path, start: int) -> str:
  """Describes how a new config.train.num_steps changes the learning rate; '' if it does not."""
  config = experiment.config
  if not start or config.optimizer.decay != 'cosine':
    return ''
  before = stored.value_at(stored.load(workdir), 'train.num_steps')
  if before == config.train.num_steps:
    return ''
  rates = [
    float(rate_until(config.optimizer, steps)(start)) for steps in (before, config.train.num_steps)
  ]
  return (
    f'learning rate: {rates[0]:.3g} at step {start:,} under the {before:,} steps of the checkpoint, '
    f'{rates[1]:.3g} under {config.train.num_steps:,} (config.optimizer.decay cosine)'
  )


def rate_until(optimizer: Optimizer, num_steps: int) -> Callable:
  """Returns step -> learning rate of a training of num_steps."""
  return learning_rate_schedule(
    optimizer.learning_rate, optimizer.warmup_steps, num_steps, optimizer.decay
  )


def learning_rates(experiment: Experiment, start: int) -> Callable[[int], float]:
  """Returns step -> learning rate from `start` on, on the host: the loop must not wait for the device."""
  optimizer, stop = experiment.config.optimizer, experiment.config.train.num_steps
  rate = rate_until(optimizer, stop)
  rates = jax.device_get(jax.vmap(rate)(np.arange(start, stop)) * np.ones(stop - start))
  return lambda step: rates[step - start]


def get_ready(evaluator: Evaluator, num_samples: int) -> None:
  """Loads what evaluations during training need before it begins. Raises: as Evaluator."""
  for warning in evaluator.check(num_samples):
    print(f'warning: {warning}')
  _ = evaluator.reference_features


def announce(experiment: Experiment, workdir: Path) -> float:
  """Prints the model, data and training length in a few lines. Returns: as facts.peak_images_per_s."""
  with alive('counting operations and memory'):
    config, f = experiment.config, facts.facts(experiment)
    peak = facts.peak_images_per_s(experiment, f)
  print(f'training in {workdir}')
  print(f'  devices   {f["devices"]} {jax.devices()[0].device_kind}, activations {f["dtype"]}')
  print(
    f'  model     {f["model"]}, {f["parameters"]:,} parameters, '
    f'{quantity(f["flops_per_image"], "FLOP")} an image forward'
  )
  print(
    f'  data      {f["train_images"]:,} images {"x".join(map(str, f["image_shape"]))}, '
    f'{f["num_classes"]} classes, {f["holdout_images"]:,} held out ({f["data_fingerprint"]})'
  )
  if experiment.is_latent:
    print(
      f'  latents   {"x".join(map(str, experiment.x0_shape))} by the autoencoder '
      f'{config.vae.fingerprint} ({config.vae.checkpoint})'
    )
  print(
    f'  training  to step {f["steps"]:,} with batch {f["batch_size"]:,} = {f["epochs"]:.1f} epochs'
  )
  for warning in facts.memory_warnings(experiment, f):
    print(f'  warning   memory: {warning}')
  logs = 'logs/ (TensorBoard), ' if logging.has_tensorboard() else ''
  print(f'  files     config.json, checkpoints/, metrics.jsonl, {logs}previews/')
  print(f'  compiler  {compiler_settings()}')
  return peak


def compiler_settings() -> str:
  """Says where compiled programs are kept, and which options of the compiler the environment sets."""
  kept, given = jax.config.jax_compilation_cache_dir, os.environ.get('XLA_FLAGS', '').strip()
  where = (
    f'programs are kept in {kept}' if kept else 'programs are not kept (JAX_COMPILATION_CACHE_DIR)'
  )
  return f'{where}; XLA_FLAGS={given}' if given else where


def restore_or_init(
  experiment: Experiment, checkpoints: Checkpoints, workdir: Path, given: Initial | None = None
) -> tuple[PyTree, int]:
  """Returns the newest usable state and its step, or a new state and 0; prints which.

  given: the weights of config.init_from, if they have been read already.
  Raises: DamagedError if there are checkpoints and none is usable; as initial.load.
  """
  with alive('restoring the newest checkpoint'):
    restored = checkpoints.restore(experiment.abstract_state)
  if restored is None:
    checkpoints.require_none()
    given = given or initial.load(experiment)
    print(f'fresh start in {workdir}')
    return new_state(experiment, given), 0
  for step, reason in restored.damaged.items():
    aside = checkpoints.set_aside(step)
    print(f'checkpoint of step {step} is damaged ({reason}): moved to {aside}')
  print(f'resumed at step {restored.step} from {checkpoints.directory / str(restored.step)}')
  return restored.state, restored.step


def new_state(experiment: Experiment, given: Initial | None) -> PyTree:
  """Builds the state at step 0 on the devices, with the weights of config.init_from if there are any."""
  if given is None:
    with alive('initialising the parameters'):
      return experiment.initial_state()
  print('\n  '.join([f'weights of {given.origin}', *given.notes]))
  scaling = given.scaling or experiment.scaling
  params = given.on_devices(experiment.abstract_state.params['model'])
  shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
  init = jax.jit(lambda params: experiment.init_state(scaling, params), out_shardings=shardings)
  with alive('placing the weights on the devices'):
    return init(params)
