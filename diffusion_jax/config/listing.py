"""All fields of the schema as one Markdown page: --mode=describe --fields, and docs/config.md."""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.config.fields import described
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
  for field in described(Config):
    path = field['path'].removeprefix('config.')
    if 'default' not in field:
      lines.append(f'\n## {path}\n\n{field["comment"]}\n')
      begun = False
      continue
    if not begun:
      lines += ['| field | default | meaning | once trained |', '|---|---|---|---|']
      begun = True
    lines.append(_row(path, field))
  return '\n'.join(lines) + '\n'


def _row(path: str, field: Mapping[str, Any]) -> str:
  allowed = f' Allowed: {field["allowed"]}.' if field['allowed'] else ''
  said = f'{field["comment"]}{allowed}'.replace('|', '\\|')
  return f'| `{path}` | `{field["default"]!r}` | {said} | {SAID.get(field["change"], "")} |'
