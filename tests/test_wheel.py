"""The package as it is installed: what the wheel holds, and that its command works away from the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import main
from diffusion_jax import cli
from diffusion_jax.config import shipped
from diffusion_jax.run import new_run

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
EXTRAS = ('cuda', 'dev', 'eval', 'tf', 'tpu')


def required(file):
  """The requirements in a file."""
  lines = (re.sub(r'\s+#.*', '', line) for line in (ROOT / file).read_text().splitlines())
  return {str(Requirement(line)) for line in lines if line and not line.startswith(('#', '-r'))}


def test_main_py_is_the_console_command():
  assert PROJECT['project']['scripts'] == {'diffusion-jax': 'diffusion_jax.cli:main'}
  assert main.main is cli.main


def test_dependencies_and_extras_are_the_requirement_files():
  files = PROJECT['tool']['setuptools']['dynamic']
  assert files['dependencies']['file'] == 'requirements-core.txt'
  extras = {name: entry['file'] for name, entry in files['optional-dependencies'].items()}
  assert extras == {name: f'requirements-{name}.txt' for name in EXTRAS}
  parts = re.findall('^-r (.*)$', (ROOT / 'requirements.txt').read_text(), re.MULTILINE)
  assert parts == [f'requirements-{name}.txt' for name in ('core', 'tf', 'eval')]
  assert all(required(file) for file in (*parts, *extras.values()))


def test_shipped_configs_are_those_at_the_top():
  assert shipped.FOLDER.resolve() == (ROOT / 'configs').resolve()
  assert shipped.names() == sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
  for path in (ROOT / 'configs').glob('*.py'):
    assert 'from configs' not in path.read_text()  # Which an installed package does not have.


def test_a_name_is_a_shipped_config_unless_it_is_a_file(tmp_path, monkeypatch):
  assert shipped.resolved('dit_cfg:8') == f'{shipped.FOLDER}/dit_cfg.py:8'
  assert shipped.resolved('folder:/a:b') == f'{shipped.FOLDER}/folder.py:/a:b'
  for other in ('configs/dit_cfg.py:8', 'quickstart.py', 'nothing', 'runs/a/config.json'):
    assert shipped.resolved(other) == other
  by_name, by_path = new_run('dit_cfg:8'), new_run(ROOT / 'configs' / 'dit_cfg.py:8')
  assert by_name.config == by_path.config
  monkeypatch.chdir(tmp_path)
  Path('data').mkdir()  # A folder is no config.
  Path('quickstart').touch()
  assert shipped.resolved('data') == f'{shipped.FOLDER}/data.py'
  assert shipped.resolved('quickstart') == 'quickstart'


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """A wheel, built in a copy of the checkout."""
  tree, folder = (tmp_path_factory.mktemp(name) for name in ('tree', 'wheel'))
  shutil.copytree(ROOT / 'diffusion_jax', tree / 'diffusion_jax', symlinks=True)
  shutil.copytree(ROOT / 'configs', tree / 'configs')
  for path in (*ROOT.glob('requirements*.txt'), *map(ROOT.joinpath, ('README.md', 'LICENSE'))):
    shutil.copy(path, tree)
  shutil.copy(ROOT / 'pyproject.toml', tree)
  command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '-w', folder, tree]
  subprocess.run(command, check=True, timeout=300)
  return next(folder.glob('*.whl'))


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_configs_and_data(wheel):
  with zipfile.ZipFile(wheel) as file:
    names = {name for name in file.namelist() if '.dist-info/' not in name}
    texts = {name: file.read(name).decode() for name in file.namelist() if '.dist-info/' in name}
  listed = [
    'git',
    'ls-files',
    '--cached',
    '--others',
    '--exclude-standard',
    'diffusion_jax',
    'configs',
  ]
  found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  files = {re.sub('^configs/', 'diffusion_jax/configs/', name) for name in found.splitlines()}
  assert names == files - {'diffusion_jax/configs'}
  assert {'diffusion_jax/py.typed', 'diffusion_jax/configs/quickstart.py'} <= names
  metadata = message_from_string(next(t for n, t in texts.items() if n.endswith('METADATA')))
  requirements = [Requirement(line) for line in metadata.get_all('Requires-Dist')]
  core = {str(r) for r in requirements if 'extra' not in str(r.marker)}
  assert core == required('requirements-core.txt')
  assert sorted(metadata.get_all('Provides-Extra')) == list(EXTRAS)
  assert metadata['Requires-Python'] == '>=3.11'


@pytest.mark.slow
def test_the_command_works_from_the_wheel(wheel, tmp_path):
  with zipfile.ZipFile(wheel) as file:
    file.extractall(tmp_path / 'site')
  command = tmp_path / 'diffusion-jax'
  command.write_text('import sys\nfrom diffusion_jax.cli import main\nsys.exit(main())\n')
  (tmp_path / 'empty').mkdir()
  environment = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}

  def run(*arguments):
    return subprocess.run(
      [sys.executable, command, *arguments],
      cwd=tmp_path / 'empty',
      env=environment,
      capture_output=True,
      text=True,
      check=False,
    )

  help_text = run('--help').stdout
  assert 'main.py' not in help_text and 'diffusion-jax --config=quickstart' in help_text
  for name in ('quickstart', 'dit_cfg:8'):
    found = run(f'--config={name}', '--mode=describe', '--json')
    assert found.returncode == 0, found.stderr
    path = str(ROOT / 'configs' / name.replace(':', '.py:')) + ('' if ':' in name else '.py')
    assert json.loads(found.stdout) == json.loads(
      run(f'--config={path}', '--mode=describe', '--json').stdout
    )
  wrong = run('--config=quickstrat', '--workdir=run')
  assert wrong.returncode == 2
  assert (
    wrong.stderr.startswith('diffusion-jax: --config') and "nearest 'quickstart'" in wrong.stderr
  )
