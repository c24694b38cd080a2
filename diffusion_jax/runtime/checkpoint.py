"""Saves and restores verified Orbax checkpoints asynchronously; keeps the newest N and the best.

Orbax restores a flipped bit in a stored array silently. Every save therefore carries a checksum of each
array of the state, computed on the devices from the bits, and every restore computes it again. The
checksum is a sum of integers modulo 2^32, so neither sharding nor the number of hosts changes it.
"""

import contextlib
import dataclasses
import gc
import inspect
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files, hosts
from diffusion_jax.runtime.mesh import path_name
from diffusion_jax.types import Array, PyTree

ROOM = 'Make room, then run the same command again: it goes on from the last complete one'
LOOKS = 20  # At a folder in which a training that runs beside this command removes old steps.
UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _checksum(x: Array) -> Array:
  """Returns sum_i bits_i (2 i + 1) mod 2^32; the factors are odd, so no change of one entry cancels."""
  bits = jax.lax.bitcast_convert_type(x, UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(x.ndim)):
    position += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= x.shape[axis]
  return jnp.sum(bits * (2 * position + 1), dtype=jnp.uint32)


@jax.jit
def _checksums(state: PyTree) -> PyTree:
  return jax.tree.map(_checksum, state)


def checksums(state: PyTree) -> dict[str, int]:
  """Returns path -> checksum for every array of `state`."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(_checksums(state)))
  return {path_name(path): int(value) for path, value in leaves}


class _RemovedError(InputError):
  """A step disappeared while it was being read."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A verified state, its step, and the newer steps that were damaged (step -> reason)."""

  state: PyTree
  step: int
  damaged: dict[int, str]


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, except that damaged metrics files do not stop it from opening a folder."""

  def metrics(self, step: int) -> dict[str, float] | None:
    """Returns the metrics of a step; None if they are absent or damaged."""
    try:
      found = super().metrics(step)
      return files.unsealed(found) if isinstance(found, dict) else None
    except (ValueError, OSError):
      return None


@contextlib.contextmanager
def _one_message():
  """Suppresses the tracebacks of reads and writes that Orbax abandons; the error raised here says the same.

  A failed one leaves others unfinished in a closed event loop, each with a traceback. They end when they like:
  after an error the filter stays.
  """

  def is_abandoned(kind, error, source=None) -> bool:
    if kind is RuntimeError and str(error) == 'Event loop is closed':
      return True
    return inspect.iscoroutine(source) and 'orbax' in source.cr_code.co_filename

  unraisable, uncaught = sys.unraisablehook, sys.excepthook
  sys.unraisablehook = lambda e: (
    None if is_abandoned(e.exc_type, e.exc_value, e.object) else unraisable(e)
  )
  sys.excepthook = lambda kind, error, trace: (
    None if is_abandoned(kind, error) else uncaught(kind, error, trace)
  )
  try:
    yield
  except BaseException:
    gc.collect()  # Ends most of what was abandoned.
    raise
  sys.unraisablehook, sys.excepthook = unraisable, uncaught


class Checkpoints:
  """The checkpoints of one work directory."""

  def __init__(
    self,
    directory: Path,
    *,
    keep_newest: int = 1,
    keep_best: int = 0,
    best_metric: str = '',
    best_mode: str = 'min',
    read_only: bool = False,
  ):
    """best_metric names an entry of the metrics given to save; best_mode is 'min' or 'max'."""
    logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax logs every save and damage.
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)  # Its errors are raised here too.
    self.directory = Path(directory).absolute()  # A relative path fails only at the first save.
    managers = ocp.checkpoint_managers
    keep = [managers.LatestN(keep_newest)]
    worst = math.inf if best_mode == 'min' else -math.inf

    def score(metrics):
      value = _value(metrics, best_metric)
      return worst if value is None else value

    if keep_best:
      best = {'get_metric_fn': score, 'n': keep_best, 'reverse': best_mode == 'min'}
      keep.append(managers.BestN(**best, keep_checkpoints_without_metrics=False))
    self._best = min if best_mode == 'min' else max
    self._best_metric = best_metric
    options = ocp.CheckpointManagerOptions(
      preservation_policy=managers.AnyPreservationPolicy(keep),
      create=not read_only,
      read_only=read_only,
      cleanup_tmp_directories=not read_only,  # Of saves that were killed.
      best_fn=score,
      best_mode=best_mode,
    )
    self._exits = contextlib.ExitStack()
    if not read_only:
      self._exits.enter_context(_one_message())  # Saves fail in the background.
    items = ('state', 'checksums')
    self._manager = _settled(
      lambda: _Manager(self.directory, item_names=items, options=options), FileNotFoundError
    )
    self._is_unchecked = False  # Whether a save has begun since the last look for its error.

  def steps(self) -> list[int]:
    """Returns the finished steps, oldest first."""
    return sorted(_settled(lambda: self._manager.all_steps(read=True), FileNotFoundError))

  def best_step(self) -> int | None:
    """Returns the stored step with the best finite metric, or None if no step has it."""
    measured = {}
    for step in self.steps():
      value = _value(self._manager.metrics(step) or {}, self._best_metric)
      if value is not None:
        measured[step] = value
    return self._best(measured, key=measured.get) if measured else None

  def save(self, step: int, state: PyTree, metrics: dict[str, float]) -> None:
    """Starts writing in the background. Raises: InputError if there is no room, or the last save failed."""
    hosts.from_first(lambda: self._require_room(state))
    with self._writing():
      sums = ocp.args.JsonSave(checksums(state))
      items = ocp.args.Composite(state=ocp.args.StandardSave(state), checksums=sums)
      self._manager.save(
        step, args=items, metrics=files.sealed(metrics) if metrics else None, force=True
      )
    self._is_unchecked = True

  def _require_room(self, state: PyTree) -> None:
    needed, disk = sum(x.nbytes for x in jax.tree.leaves(state)), os.statvfs(self.directory)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
      raise InputError(
        f'{self.directory}: a checkpoint takes {needed:,} bytes, and {free:,} are free. {ROOM}'
      )

  def check(self) -> None:
    """Raises InputError if a save that ended since the last call has failed; never waits."""
    if self._is_unchecked and not self._manager.is_saving_in_progress():
      self._is_unchecked = False
      self.wait()  # Returns at once, or raises the error of the ended thread.

  @contextlib.contextmanager
  def _writing(self):
    try:
      yield
    except (ValueError, OSError) as error:  # TensorStore and the file system raise these.
      self._exits.pop_all()  # The filter stays.
      number = files.number_in(str(error))
      reason = os.strerror(number) if number else f'{str(error)[:200]}...'
      raise InputError(
        f'{self.directory}: a checkpoint could not be written ({reason}). {ROOM}'
      ) from error

  @property
  def _aside(self) -> Path:
    return self.directory.with_name(f'{self.directory.name}-damaged')

  def require_none(self) -> None:
    """Raises DamagedError if a run that has checkpoints would begin at step 0."""
    for folder in (self.directory, self._aside):
      steps = sorted(p.name for p in folder.glob('*') if p.name.split('-')[0].isdigit())
      steps = [name for name in steps if 'tmp' not in name]
      if steps:
        raise DamagedError(
          f'{folder}: no usable checkpoint, but it holds steps {", ".join(steps)}; nothing was '
          'changed. Restore them from a copy, or move the folder away to begin at step 0'
        )

  def set_aside(self, step: int) -> Path:
    """Moves a damaged step to checkpoints-damaged/, so that it can be written again."""
    target = self._aside / str(step)
    while target.exists():
      target = target.with_name(target.name + '-again')
    target.parent.mkdir(exist_ok=True)
    (self.directory / str(step)).rename(target)
    self._manager.reload()
    return target

  def restore(
    self, abstract: PyTree, step: int | None = None, *, partial: bool = False
  ) -> Restored | None:
    """Restores the newest undamaged state, or that of `step`; returns None if nothing is stored.

    abstract: ShapeDtypeStructs with shardings, which may differ from those of the save. partial:
    `abstract` is a dictionary of some fields of the saved state, and only those are read.
    Raises: DamagedError if every checkpoint is damaged; InputError if a training that runs beside
    this command removed `step`, or removes steps faster than they are read.
    """
    if step is not None:
      return self._restore([step], abstract, partial)
    return _settled(lambda: self._restore(None, abstract, partial), _RemovedError)

  def _restore(
    self, wanted: Sequence[int] | None, abstract: PyTree, partial: bool
  ) -> Restored | None:
    damaged, listed = {}, self.steps()
    for candidate in listed[::-1] if wanted is None else wanted:
      try:
        with _one_message():
          state = self._read(candidate, abstract, partial)
      except DamagedError as error:
        # A folder that is being removed still exists for a while.
        if candidate not in listed or self.steps() != listed:
          raise _RemovedError(
            f'{self.directory}: step {candidate} could not be read, and the training that writes there '
            'has moved on. Run this command again, or train with a larger config.checkpoint.keep_newest'
          ) from None
        damaged[candidate] = str(error)
      else:
        return Restored(state, candidate, damaged)
    if damaged:
      listed = '\n'.join(f'  step {s}: {reason}' for s, reason in damaged.items())
      raise DamagedError(
        f'no usable checkpoint in {self.directory}:\n{listed}\nNothing was changed. Restore them '
        'from a copy, or move the folder away to begin at step 0'
      )
    return None

  def _read(self, step: int, abstract: PyTree, partial: bool) -> PyTree:
    wanted = ocp.args.StandardRestore(abstract)
    if partial:
      arguments = ocp.checkpoint_utils.construct_restore_args(abstract)
      wanted = ocp.args.PyTreeRestore(abstract, restore_args=arguments, partial_restore=True)
    try:
      items = self._manager.restore(
        step, args=ocp.args.Composite(state=wanted, checksums=ocp.args.JsonRestore())
      )
    except MemoryError:
      raise
    except Exception as error:  # Orbax raises a plain Exception for an array that it cannot read.
      first = (str(error).splitlines() or [type(error).__name__])[0]
      raise DamagedError(f'unreadable ({first[:200]})') from None
    lacking = [
      path_name(path)
      for path, leaf in jax.tree_util.tree_leaves_with_path(items.state)
      if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if lacking:
      raise DamagedError(f'{len(lacking)} arrays are missing, first {lacking[0]}')
    found = checksums(items.state)
    saved = items.checksums
    if not isinstance(saved, dict):
      raise DamagedError(f'unreadable checksums ({str(saved)[:50]})')
    if partial:
      saved = {name: saved[name] for name in found if name in saved}
    wrong = [name for name, value in saved.items() if found.get(name) != value]
    if wrong or len(found) != len(saved):
      raise DamagedError(f'{len(wrong)} arrays differ from what was saved, first {wrong[:1]}')
    return items.state

  def wait(self) -> None:
    """Waits until everything is on disk. Raises: InputError if it could not be written."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases the background threads. Raises: InputError as wait does."""
    with self._exits, self._writing():
      self._manager.close()


def _settled(look: Callable[[], Any], removed: type[Exception]) -> Any:
  """Returns look(), tried again while a step disappears under it; the last error is passed on."""
  for _ in range(LOOKS - 1):
    with contextlib.suppress(removed):
      return look()
  return look()


def _value(metrics: Mapping[str, object], name: str) -> float | None:
  """Returns a measured value; None for NaN, infinity and anything else that cannot be the best."""
  value = metrics.get(name)
  return value if isinstance(value, int | float) and math.isfinite(value) else None
