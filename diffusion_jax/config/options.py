"""A field of a config: its default, comment, check, and whether a trained run may change it.

A section of the schema, or a plug-in, is a dataclass (a Flax module is one) whose fields are declared by
option(). What a field's value must satisfy is a Check; its annotation is the type.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# When a run that has a checkpoint takes another value than it was trained with.
NEVER = 'never'  # The checkpoint means nothing under another value.
IN_TRAINING = (
  'in training'  # Training goes on with the new value; other modes keep the trained one.
)
SETTING = 'setting'  # A flag decides, then what the run was trained with, then the config file.
IF_GIVEN = 'if given'  # A flag decides; without one the value stays.
BY_COMMAND = 'by command'  # The command's config decides.


class Check(NamedTuple):
  """ok: whether a value is allowed. allowed: what is, in words. values: all of them, if they are few."""

  ok: Callable[[Any], bool]
  allowed: str
  values: tuple[Any, ...] = ()

  def problem(self, path: str, value: Any) -> str:
    """'path: got X, allowed Y', or '' if the value is allowed."""
    if self.ok(value):
      return ''
    if self.values:
      return unknown(path, value, self.values)
    return f'{path}: got {value!r}, allowed {self.allowed}'


def one_of(*values: Any) -> Check:
  """Allows these values."""
  return Check(lambda value: value in values, ', '.join(map(repr, values)), values)


def at_least(low: float) -> Check:
  """Allows numbers from `low` on."""
  return Check(lambda x: x >= low, f'>= {low:g}')


ANY = Check(lambda value: True, '')
COUNT = at_least(1)
NOT_NEGATIVE = at_least(0)
POSITIVE = Check(lambda x: x > 0, '> 0')
SHARE = Check(lambda x: 0 <= x < 1, '0 <= x < 1')
SEED = Check(lambda n: 0 <= n < 2**63, '0..2^63 - 1')  # The range of a random key.


def option(
  default: Any,
  comment: str,
  check: Check = ANY,
  change: str = '',
  *,
  common: bool = False,
  from_data: Any = None,
) -> Any:
  """A field of a section or of a plug-in.

  change: '' is as the section says. common: whether --help lists it. from_data: the value that leaves the
  field to the data, or None if there is no such value.
  """
  metadata = {'comment': comment, 'check': check, 'change': change}
  return dataclasses.field(
    default=default, metadata={**metadata, 'common': common, 'from_data': from_data}
  )


def options_of(cls: type) -> dict[str, dataclasses.Field]:
  """Name -> field of what option() declares in `cls`; other fields are the code's to fill."""
  return {field.name: field for field in dataclasses.fields(cls) if 'comment' in field.metadata}


def fixed_options(cls: type) -> list[str]:
  """Names the options that parameters depend on: a trained run cannot change them."""
  return [n for n, field in options_of(cls).items() if field.metadata['change'] in ('', NEVER)]


def require_options(instance: Any) -> None:
  """Raises: ValueError for an option of a plug-in that its check does not allow."""
  for name, field in options_of(type(instance)).items():
    value, check = getattr(instance, name), field.metadata['check']
    if not check.ok(value):
      raise ValueError(f'{name}: got {value!r}, allowed {check.allowed}')


def unknown(what: str, got: Any, allowed: Sequence[Any]) -> str:
  """'what: got X, allowed A, B (nearest A)'."""
  close = difflib.get_close_matches(str(got), [str(name) for name in allowed], n=1)
  nearest = f' (nearest {close[0]!r})' if close else ''
  return f'{what}: got {got!r}, allowed {", ".join(map(str, allowed)) or "none"}{nearest}'
