"""The text of --help, and suggestions for misspelt fields. Imports nothing heavy."""

import ast
import dataclasses
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from pathlib import Path

from diffusion_jax.config import shipped
from diffusion_jax.config.plugins import plugin_names
from diffusion_jax.config.schema import Config

STAGES = Path(__file__).parent / 'stages'
ALIKE = 0.72  # Below, a name is no suggestion.
MAX_SUGGESTIONS = 3
EXAMPLES = (
  '--config=quickstart --workdir=runs/quickstart',
  '--workdir=runs/quickstart --mode=sample --config.sample.cfg_scale=2',
  '--workdir=runs/quickstart --mode=evaluate',
  '--workdir=runs/quickstart --mode=sweep --sweep=sampler.name=ddim,ddpm --sweep=sample.num_steps=5,20',
  '--config=dit_cfg --mode=describe',
  '--workdir=runs --mode=report',
)


def program() -> str:
  """Returns the command as a user types it: that of an installed package, or main.py of a checkout."""
  name = os.path.basename(sys.argv[0])
  return name if name == 'diffusion-jax' else 'python main.py'


def usage() -> str:
  """Returns a line that shows how the command is used."""
  return (
    f'usage: {program()} --config=NAME|FILE --workdir=DIR [--mode=train] [--config.FIELD=VALUE ...]'
  )


def modes() -> list[str]:
  """The files of diffusion_jax/stages."""
  return sorted(path.stem for path in STAGES.glob('*.py') if path.stem != '__init__')


def summary(mode: str) -> str:
  """The first sentence of a stage's docstring, read without importing the stage."""
  text = ast.get_docstring(ast.parse((STAGES / f'{mode}.py').read_text(encoding='utf-8'))) or ''
  return text.split('\n')[0].removeprefix(f'--mode={mode}: ').rstrip('.')


def common_fields(cls: type = Config, prefix: str = '') -> dict[str, str]:
  """Path -> comment of the fields that are set most often, read without loading any plug-in."""
  found: dict[str, str] = {}
  for field in dataclasses.fields(cls):
    metadata, path = field.metadata, f'{prefix}{field.name}'
    if metadata.get('common') and 'package' in metadata:
      names = ', '.join(plugin_names(metadata['package']))
      found[f'{path}.name'] = f'{metadata["about"]} Allowed: {names}.'
    elif metadata.get('common'):
      found[path] = metadata['comment']
    elif dataclasses.is_dataclass(field.type):
      found |= common_fields(field.type, f'{path}.')
  return found


def help_text() -> str:
  """The whole of --help."""
  rows = [f'  {mode:<11}{summary(mode)}' for mode in modes()]
  fields = [
    textwrap.fill(f'  --config.{f"{name}=":<26}{text}', 110, subsequent_indent=' ' * 37)
    for name, text in common_fields().items()
  ]
  return '\n'.join(
    [
      usage(),
      'After training, --workdir=DIR alone is enough: the config is read from DIR/config.json.',
      '\nmodes:',
      *rows,
      '\nfields that are set most often:',
      *fields,
      '\nof --mode=sweep (docs/usage.md):',
      '  --sweep=FIELD=V1,V2,...      values of a field, named without config.; several make a grid',
      '  --sweep_name=NAME            the folder in DIR/sweeps; by default the names of the fields',
      '  --keep_samples=false         deletes the samples of a cell once they are measured',
      '\nconfigs, by name (or a file of your own):',
      textwrap.fill(', '.join(shipped.names()), 100, initial_indent='  ', subsequent_indent='  '),
      '\nexamples:',
      *(f'  {program()} {arguments}' for arguments in EXAMPLES),
      f'\nAll fields, with what they mean: {program()} --mode=describe --fields. More: README.md, docs/.',
    ]
  )


def leaves(mapping: Mapping, prefix: str = '') -> Iterable[str]:
  """The paths of all fields of a nested mapping."""
  for key, value in mapping.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}'


def nearest_fields(got: str, paths: Iterable[str]) -> list[str]:
  """The fields that `got` may have meant, anywhere in the tree, the likeliest first."""
  scored = [(_resemblance(got, path), path) for path in paths]
  close = [(score, path) for score, path in scored if score >= ALIKE]
  best = max((score for score, _ in close), default=0)
  common = list(common_fields())
  near = sorted(
    (-score, path.count('.'), path not in common, path)
    for score, path in close
    if score > best - 0.1
  )
  return [entry[-1] for entry in near[:MAX_SUGGESTIONS]]


def _resemblance(got: str, path: str) -> float:
  """How alike two paths are: mostly their last names, somewhat the sections above."""
  *above, last = got.split('.')
  *sections, name = path.split('.')
  words = name.split('_')
  alike = SequenceMatcher(None, last, name).ratio()
  if len(words) > 1 and last == ''.join(word[0] for word in words):
    alike = 0.95  # lr for learning_rate.
  elif {*last.split('_')} <= {*words}:
    alike = max(alike, 0.7 + 0.2 / len(words))  # steps for num_steps.
  return alike + 0.1 * SequenceMatcher(None, '.'.join(above), '.'.join(sections)).ratio()
