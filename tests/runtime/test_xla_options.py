"""Options of the compiler: which programs get them, what they change, and who goes first."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.evaluation.classifier_training import train_params
from diffusion_jax.evaluation.features.dataset_classifier import CNN
from diffusion_jax.runtime.xla_options import YNNPACK, for_convolutions
from diffusion_jax.sampling import generation


def convolved(x, kernel):
  layout = 'NHWC', 'HWIO', 'NHWC'
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=layout)
  return jnp.sum(y**2)


@pytest.fixture
def gradients(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  x, kernel = jnp.ones((4, 16, 16, 64)), jnp.ones((3, 3, 64, 64))
  return jax.jit(jax.grad(convolved, argnums=(0, 1))).lower(x, kernel)


def test_only_convolutions_on_a_cpu_get_one(gradients, monkeypatch):
  assert list(for_convolutions(gradients)) == [YNNPACK]
  product = jax.jit(jnp.matmul).lower(jnp.ones((4, 4)), jnp.ones((4, 4)))
  assert for_convolutions(product) == {}
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert for_convolutions(gradients) == {}


def test_the_environment_goes_first(gradients, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', f'--{YNNPACK}=LIBRARY_FUSION_TYPE_DOT')
  assert for_convolutions(gradients) == {}
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
  assert for_convolutions(gradients)


def test_convolutions_stay_with_xla(gradients):
  """And without the option they do not: it is not for nothing."""
  jax.config.update('jax_disable_most_optimizations', False)  # Set again before the next test.
  with_option = gradients.compile(compiler_options=for_convolutions(gradients)).as_text()
  plain = gradients.compile().as_text()
  assert '__ynn_fusion' in plain and '__ynn_fusion' not in with_option


@pytest.mark.parametrize('name, expected', [('unet', [YNNPACK]), ('dit', [])])
def test_the_training_step_is_compiled_with_it(tiny, monkeypatch, capsys, name, expected):
  given = []
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  monkeypatch.setattr(
    jax.stages.Lowered, 'compile', lambda _, compiler_options: given.append(compiler_options)
  )
  tiny(**{'model.name': name}).compile_steps(0)
  assert [list(options) for options in given] == [expected]
  assert (YNNPACK in capsys.readouterr().out) == bool(expected)


@pytest.fixture
def given(monkeypatch):
  """The options of every program that is lowered and compiled, as it happens."""
  found, plain = [], jax.stages.Lowered.compile
  monkeypatch.delenv('XLA_FLAGS', raising=False)

  def compiled(lowered, compiler_options=None):
    found.append(compiler_options or {})
    return plain(lowered, compiler_options)

  monkeypatch.setattr(jax.stages.Lowered, 'compile', compiled)
  return found


def test_the_evaluation_classifier_is_trained_with_it(tmp_path, given):
  batch = {'image': np.zeros((4, 8, 8, 1), np.uint8), 'label': np.zeros(4, np.int32)}
  source = types.SimpleNamespace(num_examples=4, read=lambda indices: batch)
  train_params(CNN((4,), 4, 2), source, 1, 4, 1e-3, 0, 0.0, tmp_path / 'kept')
  assert [list(options) for options in given] == [[YNNPACK]]


@pytest.mark.slow
@pytest.mark.parametrize('name, count', [('unet', 1), ('dit', 0)])
def test_the_sampler_is_compiled_with_it(tiny, given, capsys, name, count):
  experiment = tiny(**{'model.name': name})
  given.clear()  # Of its data.
  generation.compile_programs(experiment, experiment.generator(), 2)
  assert sum(YNNPACK in options for options in given) == count
  assert capsys.readouterr().out.count(f'compiling the sampler with {{{YNNPACK!r}') == count
