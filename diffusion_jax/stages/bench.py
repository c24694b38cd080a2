"""--mode=bench: measures speeds in one run, each as the median of several repeats.

config.bench.name chooses the benchmark, a file of diffusion_jax/benchmarks.
"""

import contextlib
import json
import platform
import sys
import tempfile
from pathlib import Path

import jax

from diffusion_jax.data.prepare import cores
from diffusion_jax.errors import InputError
from diffusion_jax.experiment import preparation
from diffusion_jax.experiment.checks import check_devices
from diffusion_jax.run import Run
from diffusion_jax.runtime import files, hosts, provenance


def main(run: Run, *, as_json: bool = False) -> None:
  """Measures, writes DIR/bench-NAME.json and prints tables, or (as_json) what it writes.

  Raises: InputError for several processes if the benchmark compares with what runs on one host.
  """
  experiment, workdir = run.experiment, run.workdir
  bench = experiment.config.bench
  check_devices(experiment)
  benchmark = bench.subject.build(experiment=experiment, repeats=bench.repeats)
  if benchmark.in_one_process:
    require_one_process(bench.subject.name)
  # With as_json, standard output is the object alone.
  with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
    if benchmark.on_data:
      preparation.ensure_images(experiment, workdir)
    with tempfile.TemporaryDirectory(dir=workdir, prefix='.bench-') as folder:
      results = benchmark.measure(Path(folder))
  if not hosts.is_first():
    return
  settings = {
    'machine': platform.machine(),
    'cores': cores(),
    'devices': experiment.mesh.size,
    'device': jax.devices()[0].device_kind,
    **provenance.of_result(),
    'bench': {'name': bench.subject.name, 'repeats': bench.repeats, **bench.subject.options},
  }
  if benchmark.on_data:
    data = experiment.meta
    settings |= {'data': data['fingerprint'], 'data_bytes': data['images_bytes']}
  path = workdir / f'bench-{bench.subject.name}.json'
  content = {**settings, **results}
  files.write_json(path, content)
  print(json.dumps(content) if as_json else f'{benchmark.report(results)}\nwritten to {path}')


def require_one_process(name: str) -> None:
  """Raises: InputError on all processes if there are several."""
  if hosts.count() > 1:
    raise hosts.of_all(
      InputError(
        f'--mode=bench: got {hosts.count()} processes, allowed 1 for config.bench.name {name}: what it '
        'compares with runs on one host; run it on one, outside of what starts the others'
      )
    )
