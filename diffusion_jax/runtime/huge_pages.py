"""Memory in huge pages for a command, on Linux with glibc. Imports nothing heavy."""

import contextlib
import os
import sys
from pathlib import Path

VARIABLE = 'GLIBC_TUNABLES'  # Read by glibc once, when a process starts.
SETTING = 'glibc.malloc.hugetlb'  # From glibc 2.35 on; ignored before.
KERNEL = Path('/sys/kernel/mm/transparent_hugepage/enabled')


def use() -> None:
  """Starts this command again with SETTING=1; call it before anything heavy is imported.

  XLA takes the memory of a program anew in every run, and on a CPU the kernel then fills it page by page: a
  quarter of a million pages of 4 KiB in a step of DiT-S/2, or a thousand with those of 2 MiB. Nothing happens
  where the kernel does not leave the choice to programs, where the variable names SETTING already, or where
  Python was not asked for this command alone: by a notebook, a test, a debugger or a program that calls it.
  """
  given = os.environ.get(VARIABLE, '')
  alone = sys.orig_argv[1:] in (sys.argv, ['-u', *sys.argv])
  if SETTING in given or not alone or not on_request():
    return
  os.environ[VARIABLE] = ':'.join(filter(None, [given, f'{SETTING}=1']))
  with contextlib.suppress(OSError):  # Without huge pages then.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def on_request() -> bool:
  """Whether the kernel gives huge pages to programs that ask for them, and glibc is there to ask."""
  try:
    chosen = KERNEL.read_text()
  except OSError:
    return False
  return '[madvise]' in chosen and 'CS_GNU_LIBC_VERSION' in os.confstr_names
