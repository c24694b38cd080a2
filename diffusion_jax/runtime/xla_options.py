"""Options of the compiler that are measured to help (docs/performance.md)."""

import os

import jax
from tqdm import tqdm

YNNPACK = 'xla_cpu_experimental_ynn_fusion_type'  # What XLA leaves to this library on a CPU.


def for_convolutions(program: jax.stages.Lowered) -> dict[str, str]:
  """Options with which to compile a program; XLA_FLAGS in the environment goes first.

  On a CPU YNNPACK takes longer for convolutions than Eigen, and twice as long for their gradients: it only
  reduces there. A program that has no convolution gets no option, nor does an accelerator.
  """
  if jax.default_backend() != 'cpu' or YNNPACK in os.environ.get('XLA_FLAGS', ''):
    return {}
  if 'stablehlo.convolution' not in program.as_text():
    return {}
  return {YNNPACK: 'LIBRARY_FUSION_TYPE_REDUCE'}


def compiled(program: jax.stages.Lowered, what: str) -> jax.stages.Compiled:
  """Compiles it with these options; the first process prints them, above a bar if there is one."""
  options = for_convolutions(program)
  if options and jax.process_index() == 0:
    tqdm.write(f'compiling {what} with {options}; XLA_FLAGS may say otherwise')
  return program.compile(compiler_options=options)
