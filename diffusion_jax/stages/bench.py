"""--mode=bench: measures speeds side by side in one run, each as the median of several repeats.

config.bench.name chooses the benchmark, a file of diffusion_jax/benchmarks.
"""

import platform
import tempfile
from pathlib import Path

import jax

from diffusion_jax.data.prepare import cores
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts, provenance


def main(run: Run) -> None:
  """Measures, writes DIR/bench-NAME.json and prints tables. Raises: InputError for several processes."""
  experiment, workdir = run.experiment, run.workdir
  if hosts.count() > 1:
    raise hosts.of_all(
      InputError(
        f'--mode=bench: got {hosts.count()} processes, allowed 1: what it compares with runs on one host; '
        'run it on one, outside of what starts the others'
      )
    )
  check_devices(experiment)
  preparation.ensure_images(experiment, workdir)
  bench = experiment.config.bench
  benchmark = bench.subject.build(experiment=experiment, repeats=bench.repeats)
  with tempfile.TemporaryDirectory(dir=workdir, prefix='.bench-') as folder:
    results = benchmark.measure(Path(folder))
  settings = {
    'machine': platform.machine(),
    'cores': cores(),
    'device': jax.devices()[0].device_kind,
    **provenance.of_result(),
    'bench': {'name': bench.subject.name, 'repeats': bench.repeats, **bench.subject.options},
    'data': experiment.meta['fingerprint'],
    'data_bytes': experiment.meta['images_bytes'],
  }
  path = workdir / f'bench-{bench.subject.name}.json'
  files.write_json(path, {**settings, **results})
  print(benchmark.report(results))
  print(f'written to {path}')
