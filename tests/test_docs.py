"""The examples of the documentation run as they stand."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.config.fields import updated
from diffusion_jax.config.schema import Config
from scripts.run_notebook import executed
from tests.conftest import tiny_mapping
from tests.support.samples import load_samples

DOCS = Path(__file__).parents[1] / 'docs'
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
FILE = re.compile(r'`(mylab/\w+\.py)`:\n\n```python\n(.*?)^```', re.MULTILINE | re.DOTALL)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where runs/quickstart was trained, at the smallest sizes, and mylab/ holds the plug-ins."""
  tmp_path = tmp_path_factory.mktemp('docs')
  run_mode('train', tiny_mapping(tmp_path), {}, tmp_path / 'runs' / 'quickstart')
  for path, text in FILE.findall((DOCS / 'extending.md').read_text()):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(text)
  return tmp_path


@pytest.fixture
def there(folder, monkeypatch):
  """The folder, as that in which a command is started."""
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(str(folder))
  yield folder
  for name in [name for name in sys.modules if name.split('.')[0] == 'mylab']:
    del sys.modules[name]


def run(mode, folder, workdir, changes):
  mapping = updated(Config, tiny_mapping(folder), changes)
  run_mode(mode, mapping, changes, folder / 'runs' / workdir)


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_page_of_the_library_runs_from_top_to_bottom(there):
  blocks = BLOCK.findall((DOCS / 'library.md').read_text())
  assert len(blocks) == 7
  names = {}
  for number, text in enumerate(blocks):
    exec(compile(text, f'library.md, example {number + 1}', 'exec'), names)
  assert names['images'].shape == (100, 8, 8, 1) and names['images'].dtype == np.uint8
  assert np.isfinite(float(names['loss'])) and int(names['state'].step) == 3


@pytest.mark.slow
def test_the_sampler_outside_makes_samples(there):
  run('sample', there, 'quickstart', {'sampler.name': 'mylab.midpoint', 'sample.name': 'midpoint'})
  made, _ = load_samples(there / 'runs' / 'quickstart' / 'samples' / 'midpoint', 20)
  assert made.shape == (20, 8, 8, 1) and made.std() > 10


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_time_sampling_outside_trains(there):
  name = {'time_sampling.name': 'mylab.powered', 'time_sampling.powered.power': 0.7}
  run('train', there, 'powered', name)
  stored = (there / 'runs' / 'powered' / 'config.json').read_text()
  assert '"mylab.powered"' in stored and '"power": 0.7' in stored


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_objective_outside_trains_and_samples(there):
  name = {'objective.name': 'mylab.classified', 'objective.classified.weight': 0.2}
  run('train', there, 'classified', name)
  assert '"accuracy"' in (there / 'runs' / 'classified' / 'metrics.jsonl').read_text()
  run('sample', there, 'classified', name)
  assert (there / 'runs' / 'classified' / 'samples' / 'ddim3-cfg1' / 'grid.png').exists()


@pytest.mark.slow
def test_the_notebook_runs_and_the_file_keeps_its_outputs(tmp_path):
  stored = json.loads((DOCS / 'tutorial.ipynb').read_text())
  made, names = executed(stored, tmp_path)
  kinds, kept = (
    [[output['output_type'] for output in cell.get('outputs', [])] for cell in notebook['cells']]
    for notebook in (made, stored)
  )
  assert kinds == kept and sum(kind.count('display_data') for kind in kinds) == 7
  assert names['trained'].step == 500 and np.mean(names['losses'][-20:]) < 0.4
  assert np.abs(names['trained'].to_images(names['x']).astype(int) - names['same']).max() <= 1
