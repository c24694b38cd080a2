"""All fields of the schema as one Markdown page: --mode=describe --fields, and docs/config.md."""

from diffusion_jax.config.fields import Leaf, Section, section_of, walk
from diffusion_jax.config.options import BY_COMMAND, IF_GIVEN, NEVER, SETTING
from diffusion_jax.config.schema import Config

HEAD = """\
# Every field of a config

`--config.FIELD=VALUE` sets a field on the command line; a file of `configs/` sets it in Python. Of a choice
only the alternative of its `name` is used. This page is what `python main.py --mode=describe --fields` prints.

The last column says what happens when a run that has a checkpoint is given another value:

- *fixed*: refused, because the checkpoint means nothing under another value
- *setting*: a flag decides; without one, what the run was trained with
- *flag*: a flag decides; without one, the value stays
- *command*: the config of the command decides
- otherwise training goes on with the new value, and other modes keep the trained one
"""
SAID = {NEVER: 'fixed', SETTING: 'setting', IF_GIVEN: 'flag', BY_COMMAND: 'command'}


def all_fields() -> str:
  """The page: a heading for each section, a row for each field."""
  lines, begun = [HEAD], False
  for path, item in walk(section_of(Config)):
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
