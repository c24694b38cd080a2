"""Imports point one way, and heavy packages stay where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

from diffusion_jax.config.fields import Leaf, schema, walk
from diffusion_jax.config.schema import Config

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'diffusion_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
TIERS = [
  {'types', 'errors'},
  {'randomness', 'config'},
  {'runtime', 'usage'},
  {'diffusion', 'models', 'data', 'reporting'},
  {'pretrained', 'training'},
  {'objectives'},
  {'evaluation'},
  {'experiment'},
  {'sampling'},
  {'benchmarks'},
  {'run'},
  {'stages', 'command', 'parsing'},
  {'cli'},
]
# What these may enter of the rooms that describe data and networks.
BELOW = {
  'pretrained': {'models'},
  'training': {'diffusion', 'models'},
  'evaluation': {'models'},
}
LIGHT = ('diffusion', 'models', 'training.step', 'evaluation')
OPTIONAL = {
  'tensorflow',
  'tensorflow_datasets',
  'tensorboard',
  'clu',
  'torch',
  'torch_fidelity',
  'wandb',
}
HEAVY = {*OPTIONAL, 'ml_collections', 'sklearn', 'matplotlib'}
MAY_IMPORT_TENSORFLOW = {'data', 'runtime'}
EXISTS_FOR_TFDS = PACKAGE / 'data' / 'imagenet100_tfds.py'  # Its class is what TFDS registers.


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def tier(name):
  return next(i for i, names in enumerate(TIERS) if name in names)


def imports(path, inside_functions):
  """Names of imported modules at module level, or everywhere."""
  tree = ast.parse(path.read_text())
  nodes = ast.walk(tree) if inside_functions else ast.iter_child_nodes(tree)
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module


def test_imports_point_one_way():
  wrong = []
  for path in FILES:
    here = room(path)
    for name in imports(path, inside_functions=True):
      if here == '__init__' or not name.startswith('diffusion_jax.'):
        continue
      there = name.split('.')[1]
      if there == here:
        continue
      beside = here in BELOW and tier(there) == tier('diffusion')
      if tier(there) >= tier(here) or (beside and there not in BELOW[here]):
        wrong.append(f'{path.relative_to(ROOT)} imports {name}')
  assert not wrong


def test_heavy_packages_are_imported_inside_functions_of_their_rooms():
  wrong = []
  for path in FILES:
    at_module_level = {name.split('.')[0] for name in imports(path, inside_functions=False)}
    if path != EXISTS_FOR_TFDS and at_module_level & HEAVY:
      wrong.append(f'{path.relative_to(ROOT)} imports {at_module_level & HEAVY} at its top')
    anywhere = {name.split('.')[0] for name in imports(path, inside_functions=True)}
    if anywhere & {'tensorflow', 'clu'} and room(path) not in MAY_IMPORT_TENSORFLOW:
      wrong.append(f'{path.relative_to(ROOT)} imports TensorFlow')
  assert not wrong


def test_light_rooms_load_neither_tensorflow_nor_ml_collections():
  modules = []
  for name in LIGHT:
    folder = PACKAGE.joinpath(*name.split('.'))
    paths = sorted(folder.rglob('*.py')) if folder.is_dir() else [folder.with_suffix('.py')]
    parts = (p.relative_to(ROOT).with_suffix('').parts for p in paths)
    modules += ['.'.join(p for p in names if p != '__init__') for names in parts]
  program = f'import sys\nimport {", ".join(modules)}\nprint(*sys.modules)'
  loaded = subprocess.run(
    [sys.executable, '-c', program], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.split()
  assert 'jax' in loaded and not set(loaded) & HEAVY


def test_modules_say_what_they_are():
  texts = {path: path.read_text() for path in FILES}
  assert not [
    p for p, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))
  ]


def test_main_is_only_flags():
  assert len((ROOT / 'main.py').read_text().splitlines()) < 60


def test_no_stage_imports_another():
  folder = PACKAGE / 'stages'
  wrong = [
    f'{path.name} imports {name}'
    for path in folder.glob('*.py')
    for name in imports(path, inside_functions=True)
    if name.startswith('diffusion_jax.stages')
  ]
  assert not wrong


def test_files_import_in_no_circle():
  """Modules of the package that import each other, directly or through others."""
  names = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in FILES
  }
  graph = {}
  for name, path in names.items():
    tree = ast.parse(path.read_text())
    found = set(imports(path, inside_functions=True))
    for node in ast.walk(tree):  # from package import module
      if isinstance(node, ast.ImportFrom) and node.module:
        found |= {f'{node.module}.{alias.name}' for alias in node.names}
    graph[name] = {each for each in found if each in names and each != name}
  while leaves := [name for name, needed in graph.items() if not needed & set(graph)]:
    for name in leaves:
      del graph[name]
  assert not graph


def test_fields_are_listed_where_they_are_declared_alone():
  """No tuple, list, set or dict outside a plug-in's file names several fields of a config by their paths."""
  paths = {
    path.removeprefix('config.')
    for path, item in walk(schema(Config))
    if isinstance(item, Leaf) and path.count('.') > 1
  }
  lists = []
  for path in FILES:
    for node in ast.walk(ast.parse(path.read_text())):
      entries = node.keys if isinstance(node, ast.Dict) else getattr(node, 'elts', [])
      named = {e.value for e in entries if isinstance(e, ast.Constant)} & paths
      if len(named) > 2:
        lists.append(f'{path.relative_to(ROOT)}:{node.lineno}: {sorted(named)}')
  assert not lists
