"""The flags of --mode=sweep: fields and their values as a command line has them.

--sweep=FIELD=V1,V2,... separates values by commas outside of brackets and quotes; a value that is a tuple
stands in brackets: --sweep=sample.labels=(3,),(1,7).
"""

import ast
import dataclasses
import re
import typing
from typing import Any, NamedTuple

from diffusion_jax.config.fields import Leaf

OPEN, CLOSED, QUOTES = '([{', ')]}', '\'"'


class Flags(NamedTuple):
  """fields: the texts FIELD=V1,V2,... of --sweep. given: fields that other flags set."""

  fields: tuple[str, ...] = ()
  name: str = ''
  keep_samples: bool = True
  given: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Axis:
  """A swept field and its values, each once."""

  field: str
  values: tuple[Any, ...]


def split(text: str) -> list[str]:
  """Splits at commas outside of brackets and quotes. Raises: ValueError for a bracket or quote left open."""
  parts, depth, quote = [''], 0, ''
  for character in text:
    if quote:
      quote = '' if character == quote else quote
    elif character in QUOTES:
      quote = character
    else:
      depth += (character in OPEN) - (character in CLOSED)
      if character == ',' and not depth:
        parts.append('')
        continue
    parts[-1] += character
  if depth or quote:
    raise ValueError('values whose brackets and quotes are closed')
  return [part.strip() for part in parts]


def read_value(text: str, leaf: Leaf) -> Any:
  """Reads a value by the type of its field. Raises: ValueError that says what is allowed."""
  if typing.get_origin(leaf.hint) is tuple or isinstance(leaf.default, tuple):
    return _tuple(text)
  kind = str if leaf.package else leaf.hint
  if kind is bool:
    if text.lower() not in ('true', 'false'):
      raise ValueError('true, false')
    return text.lower() == 'true'
  if kind in (int, float):
    try:
      return kind(text)
    except ValueError as error:
      raise ValueError(f'a value of type {kind.__name__}') from error
  return _unquoted(text) if kind is str else _literal(text)


def shown(value: Any) -> str:
  """A value as text, as short as it goes: '0.1', 'ddim', '(3, 7)'."""
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float):
    return f'{value:g}'
  if isinstance(value, (tuple, list)):
    return f'({", ".join(map(shown, value))})'
  return str(value) or "''"


def key(field: str) -> str:
  """What a field is called: its last word, after that of its section if it lies deeper: 'ddim.eta'.

  A plug-in is called by its section: 'sampler'.
  """
  words = field.removesuffix('.name').split('.')
  return '.'.join(words[-2:]) if len(words) > 2 else words[-1]


def name_of(fields: list[str]) -> str:
  """The name of a sweep over these fields, as 'sampler-num_steps'."""
  keys = [key(field) for field in fields]
  return '-'.join(k if keys.count(k) == 1 else field for k, field in zip(keys, fields))


def in_name(field: str, value: Any) -> str:
  """A field's value as a part of a folder's name: 'eta0.5'."""
  word = key(field).rpartition('.')[2]
  return word + re.sub(r'[^\w.+-]+', '-', shown(value)).strip('-')


def _tuple(text: str) -> tuple[Any, ...]:
  if not (text[:1] in tuple(OPEN) and text[-1:] in tuple(CLOSED)):
    raise ValueError('tuples in brackets, as (0.1,0.9)')
  return tuple(_literal(part) for part in split(text[1:-1]) if part)


def _literal(text: str) -> Any:
  """A Python value, a tuple for a list; a word that is none as it stands."""
  if text[:1] in tuple(OPEN):
    return _tuple(text)
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _unquoted(text: str) -> str:
  is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES
  return text[1:-1] if is_quoted else text
