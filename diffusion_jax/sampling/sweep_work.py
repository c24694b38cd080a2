"""Samples and measures the cells of --mode=sweep, with what they share made once.

A set that is made only to be measured is marked by a file, and cut down to the samples of the sweep's picture
once its result is written. Sets that were there before keep their samples.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.errors import InputError
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.experiment import Experiment
from diffusion_jax.experiment.weights import load_checkpoint
from diffusion_jax.reporting.records import canonical
from diffusion_jax.reporting.runs import read_result
from diffusion_jax.runtime import files, hosts, lease
from diffusion_jax.runtime.checkpoint import checksums
from diffusion_jax.sampling import guided, measured, sample_set, samples
from diffusion_jax.sampling.pictures import shown_indices
from diffusion_jax.sampling.sweep import Cell, of_cells
from diffusion_jax.training.state import Weights

TEMPORARY = 'delete-when-measured'  # The file that marks a set.
EXTRAS = ('frames.npz', 'denoising.gif', 'samples.npz')  # Of a set, beside its parts.
FOLDERS = ('png', 'features')
# The sections of a config on which the evaluation of images does not depend.
OF_SAMPLES = ('sample', 'sampler', 'report', 'published', 'bench', 'logging')
OF_SETS = ('num_samples', 'num_seeds', 'neighbours')  # The same, fields of config.eval.


class Work:
  """What the cells share: evaluators, weights and measurements of real images, each made once."""

  def __init__(self, workdir: Path, given: tuple[Weights, int] | None, keep_samples: bool):
    self.workdir, self.keep_samples = workdir, keep_samples
    self._given = given
    self._evaluators: dict[str, Evaluator] = {}
    self._weights: tuple[str, tuple[Weights, int]] | None = None  # Of the last cell.
    self._warnings: dict[tuple[str, int], list[str]] = {}
    self._likelihoods: dict[str, dict[str, float]] = {}
    self._baselines: dict[tuple[str, int], Mapping[str, Any] | None] = {}

  def check(self, cells: Sequence[Cell]) -> list[str]:
    """Prints the warnings about the results to come. Returns: what cannot be measured, and in which cells."""
    wrong: dict[str, list[str]] = {}
    for cell in cells:
      key = self._key(cell)
      if key not in self._warnings:
        try:
          self._warnings[key] = measured.checked(self.evaluator(cell), key[1])
        except InputError as error:
          for problem in str(error).splitlines():
            wrong.setdefault(problem, []).append(cell.label)
    return of_cells(wrong)

  def evaluator(self, cell: Cell) -> Evaluator:
    """The evaluator of a cell's config.eval, with its compiled programs."""
    return self._evaluators.setdefault(self._key(cell)[0], Evaluator(cell.experiment))

  def _key(self, cell: Cell) -> tuple[str, int]:
    """All that the evaluation of images depends on, and their number."""
    mapping = cell.experiment.mapping
    rest = {name: mapping[name] for name in mapping if name not in OF_SAMPLES}
    rest['eval'] = {name: rest['eval'][name] for name in rest['eval'] if name not in OF_SETS}
    return canonical(rest), cell.experiment.config.sample.num_samples

  def weights(self, experiment: Experiment) -> tuple[Weights, int]:
    """The weights of a cell and their step."""
    if self._given:
      return self._given
    sample = experiment.config.sample
    others = {k: v for k, v in experiment.mapping.items() if k not in (*OF_SAMPLES, 'eval')}
    key = canonical([sample.checkpoint, sample.average, others])
    if self._weights is None or self._weights[0] != key:
      self._weights = None  # Two do not have to fit.
      restored = load_checkpoint(experiment, self.workdir)
      self._weights = key, (restored.state, restored.step)
    return self._weights[1]

  def folder(self, experiment: Experiment) -> Path:
    """The folder of a cell's sample set, whether or not it is there."""
    found = samples.find(experiment, self.workdir)
    return found or self._place(experiment)

  def _place(self, experiment: Experiment) -> Path:
    """The same where only the parameters tell: of config.init_from, or of a checkpoint without checksums."""
    base, wanted = samples.base_folder(experiment, self.workdir), self.identity(experiment)
    return Path(hosts.from_first(lambda: str(sample_set.place(base, wanted))))

  def identity(self, experiment: Experiment) -> dict[str, Any]:
    """All that a cell's images depend on, as far as it can be known without reading parameters."""
    found = samples.stored_identity(experiment, self.workdir)
    if found is None:
      weights, step = self.weights(experiment)
      sums = checksums(weights.parts).values()
      found = samples.identity(experiment, step, sums, weights.scaling)
      guide = guided.load_guide(experiment, self.workdir, weights.scaling)
      if guide:
        found['guide'] = guided.identity_of(guide.step, checksums(guide.parts).values())
    return found

  def found(self, cell: Cell) -> dict[str, Any] | None:
    """The result of a cell, if it has been measured by the same protocol."""
    experiment, count = cell.experiment, self._key(cell)[1]
    name, identity = self.folder(experiment).name, self.identity(experiment)
    balance = measured.class_balance(experiment, identity)
    protocol = self.evaluator(cell).protocol(count, balance)
    wanted = canonical({**protocol, **measured.likelihood_protocol(experiment)})
    seeds, identity = experiment.config.eval.num_seeds, json.loads(json.dumps(identity))

    def look():
      for path in sorted((self.workdir / 'eval').glob(f'{name}*.json')):
        result = read_result(path, lambda remark: None)
        if result and result['name'] == name and canonical(result['protocol']) == wanted:
          found = result['samples']  # Older ones lack entries that are None now.
          if (
            all(found.get(key) == value for key, value in identity.items())
            and len(result['seeds']) == seeds
          ):
            return result
      return None

    return hosts.from_first(look)

  def measure(self, cell: Cell) -> dict[str, Any]:
    """Makes what is missing of a cell's sets and writes DIR/eval/NAME.json. Returns: its content."""
    given, evaluator, key = self.weights(cell.experiment), self.evaluator(cell), self._key(cell)
    for each in self._sets(cell, given[1]):
      self._mark(each)
      samples.complete(each, self.workdir, given)
    result = measured.sample_result(cell.experiment, evaluator, self.workdir, self._warnings[key])
    if cell.experiment.config.eval.nll_num_images:
      values = measured.likelihood_of(cell.experiment, *given, self._likelihoods)
      result['metrics'] |= values
      result['protocol'] |= measured.likelihood_protocol(cell.experiment)
    if key not in self._baselines:
      self._baselines[key] = measured.real_baseline(evaluator, key[1])
    result |= {'real_baseline': self._baselines[key]} if self._baselines[key] else {}
    return hosts.from_first(lambda: measured.write_result(result, self.workdir)[1])

  def tidy(self, cell: Cell, result: Mapping[str, Any]) -> None:
    """Deletes the samples of a measured cell, unless they are to stay or were there before."""
    for each in self._sets(cell, result['samples']['step']):
      folder = self.folder(each)
      if hosts.from_first((folder / TEMPORARY).exists):
        with lease.held(folder / 'sample.lease', f'sampling {folder}'):
          shown = shown_indices(each)
          hosts.from_first(lambda folder=folder, shown=shown: self._tidy(folder, shown))

  def _tidy(self, folder: Path, shown: np.ndarray) -> None:
    if not self.keep_samples:
      sample_set.keep_only(folder, shown)
      for name in EXTRAS:
        (folder / name).unlink(missing_ok=True)
      for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / TEMPORARY).unlink()

  def _mark(self, experiment: Experiment) -> None:
    """Marks a set that is about to be begun, if its samples are not to stay."""
    folder = self.folder(experiment)

    def mark():
      if not self.keep_samples and not (folder / 'meta.json').exists():
        files.write(folder / TEMPORARY, 'Begun by --mode=sweep --keep_samples=false.\n')

    hosts.from_first(mark)

  def _sets(self, cell: Cell, step: int) -> list[Experiment]:
    return [cell.experiment, *measured.with_other_seeds(cell.experiment, step)]
