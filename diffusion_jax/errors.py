"""The exceptions that stop a run, each with the exit code that the command returns."""

from collections.abc import Sequence


def listed(lines: list[str], most: int) -> str:
  """`most` lines of a message at most, and how many more there are."""
  more = [f'  and {len(lines) - most:,} more'] if len(lines) > most else []
  return '\n'.join([*lines[:most], *more])


class Stop(Exception):
  """A message for the user instead of a traceback, and the exit code that goes with it."""

  exit_code = 1
  on_all = False  # Whether every process of the run has this error, which the first one reports.


class InputError(Stop):
  """The command, the config or the user's files are not usable as they are.

  problems: where the message lists several, each by itself.
  """

  exit_code = 2
  problems: Sequence[str] = ()


class DamagedError(Stop):
  """Data or checkpoints on disk are not what was written."""

  exit_code = 3


class DivergedError(Stop):
  """Training produced non-finite losses and stopped."""

  exit_code = 4


class Interrupted(Stop):
  """A signal arrived and a checkpoint was written; the same command goes on."""

  exit_code = 75
