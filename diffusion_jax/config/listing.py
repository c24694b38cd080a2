"""All fields of the schema as one Markdown page: --mode=describe --fields, and docs/config.md."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.config.fields import Leaf, Section, schema, walk
from diffusion_jax.config.options import BY_COMMAND, IF_GIVEN, NEVER, SETTING
from diffusion_jax.config.schema import Config

HEAD = """\
# Every field of a config

`--config.FIELD=VALUE` sets a field on the command line; a file of `configs/` sets it in Python. A field that
neither gives has its default. In a choice only the alternative that its `name` gives is used. This page is what
`python main.py --mode=describe --fields` prints.

A choice also takes a module of your own, by its dotted name. `--config.sampler.name=mylab.heun3` loads
`mylab/heun3.py` from the current directory or the Python path. Its class is a dataclass named like the module,
`Heun3`, and its options are `config.sampler.heun3.*`: the last part of the name, which must not be in use there
already. In a config file: `config.sampler.name = 'mylab.heun3'` and `config.sampler.heun3 = {'order': 2}`.

The last column says what happens when a run that has a checkpoint is given another value:

- *fixed*: refused, because the checkpoint means nothing under another value
- *setting*: a flag decides; without one, what the run was trained with
- *flag*: a flag decides; without one, the value stays
- *command*: the config of the command decides
- otherwise training goes on with the new value, and other modes keep the trained one
"""
SAID = {NEVER: 'fixed', SETTING: 'setting', IF_GIVEN: 'flag', BY_COMMAND: 'command'}


def all_fields(mapping: Mapping[str, Any] | None = None) -> str:
  """The page: a heading for each section, a row for each field.

  mapping: a config, for the options of the plug-ins that it names by a dotted name.
  """
  lines, begun = [HEAD], False
  for path, item in walk(schema(Config, mapping)):
    path = path.removeprefix('config.')
    if isinstance(item, Section):
      lines += [f'\n## {path}\n\n{item.comment}\n'] * bool(item.items)
      begun = begun and not item.items
      continue
    if not begun:
      lines += ['| field | default | meaning | once trained |', '|---|---|---|---|']
      begun = True
    lines.append(_row(path, item))
  return '\n'.join(lines) + '\n'


def _row(path: str, leaf: Leaf) -> str:
  allowed = f' Allowed: {leaf.check.allowed}.' if leaf.check.allowed else ''
  said = f'{leaf.comment}{allowed}'.replace('|', '\\|')
  return f'| `{path}` | `{leaf.default!r}` | {said} | {SAID.get(leaf.change, "")} |'
