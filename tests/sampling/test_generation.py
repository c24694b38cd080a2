"""Batches of samples: how large they are, and that a sample does not depend on its batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion.pixels import to_uint8
from diffusion_jax.diffusion.samplers.ddim import DDIM
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import with_settings
from diffusion_jax.sampling import generation
from diffusion_jax.sampling.generation import (
  compile_generate,
  compile_programs,
  largest_batch,
  run_length,
  size_of_batches,
)
from diffusion_jax.training.state import Weights


class Multistep(DDIM):
  """DDIM that carries what multistep methods do: the last eps, and how many steps there were."""

  def init(self, x_T, times):
    return jnp.zeros_like(x_T), jnp.int32(0)

  def step(self, keys, x_t, t, s, denoise, carry):
    x_s, _ = super().step(keys, x_t, t, s, denoise, ())
    return x_s, (denoise(x_t, t).eps, carry[1] + 1)


def shaken(experiment):
  """Parameters away from the zeros of the initialisation."""
  leaves, tree = jax.tree.flatten(jax.jit(experiment.objective.init)()['model'])
  keys = jax.random.split(jax.random.key(3), len(leaves))
  noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
  return jax.tree.map(np.add, jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, noise))


@pytest.mark.slow
def test_the_largest_batch_that_fits(tiny, monkeypatch):
  """Its programs need no more than is free, those of twice as many do; never more than it takes for all."""
  experiment = tiny(**{'sample.batch_size': 0})

  def needed(size):
    return compile_programs(experiment, experiment.generator(), size).bytes_per_device()

  share = generation.SHARE_OF_FREE
  for size in (8, 32):
    monkeypatch.setattr(generation, 'free_bytes', lambda size=size: int(1.3 * needed(size) / share))
    assert largest_batch(experiment, 1000) == size
    assert size_of_batches(experiment, 3 * size) == size
  assert needed(32) < 1.3 * needed(32) < needed(64)
  monkeypatch.setattr(generation, 'free_bytes', lambda: 10**12)
  assert largest_batch(experiment, 20) == 32 and size_of_batches(experiment, 20) == 20
  monkeypatch.setattr(generation, 'free_bytes', lambda: 1)
  assert largest_batch(experiment, 20) == 1
  monkeypatch.setattr(generation, 'free_bytes', lambda: 0)
  with pytest.raises(InputError, match=r'config\.sample\.batch_size: got 0'):
    largest_batch(experiment, 20)


@pytest.mark.parametrize(
  'count, batch_size, expected',
  [(2, 250, 2), (250, 250, 250), (260, 250, 130), (20, 7, 7), (9, 4, 3)],
)
def test_no_batch_is_larger_than_what_is_asked_for(tiny, count, batch_size, expected):
  experiment = tiny(**{'sample.batch_size': batch_size, 'sample.num_samples': count})
  assert size_of_batches(experiment, count) == expected
  if count == 2:
    weights, done = Weights(jax.jit(experiment.objective.init)()), []
    generator = experiment.generator(experiment.config.sample.gif_frames, 2)
    size = size_of_batches(experiment, experiment.config.sample.num_samples)
    images, _ = compile_generate(experiment, generator, size)(
      weights, np.arange(2, dtype=np.uint32), np.zeros(2, np.int32), done.append
    )
    assert images.shape == (2, 8, 8, 1) and done == [1, 2, 3]


def test_a_sampler_may_carry_scalars(tiny):
  experiment = tiny(**{'sample.num_steps': 20})
  weights, labels = Weights(jax.jit(experiment.objective.init)()), np.zeros(4, np.int32)
  index, made = np.arange(4, dtype=np.uint32), []
  for sampler in (DDIM(experiment.schedule), Multistep(experiment.schedule)):
    experiment.__dict__['sampler'] = sampler
    made.append(compile_generate(experiment, experiment.generator(), 4)(weights, index, labels)[0])
  np.testing.assert_array_equal(*made)


def test_runs_of_steps_carry_what_a_multistep_sampler_knows(tiny):
  """Ten compiled runs make what one scan over all steps makes, to one level of a pixel."""
  options = {'sampler.name': 'unipc', 'sampler.unipc.order': 3, 'sample.num_steps': 20}
  experiment = tiny(**options)
  weights, labels = Weights(jax.jit(experiment.objective.init)()), np.arange(8, dtype=np.int32)
  index, generator = np.arange(8, dtype=np.uint32), experiment.generator()
  images, _ = compile_generate(experiment, generator, 8)(weights, index, labels)
  network = experiment.objective.network(weights.parts)
  whole = jax.jit(lambda i, y: generator(network, i, y)[0])(index, labels)
  whole = experiment.to_images(experiment.decoder, weights.scaling, whole)
  assert np.abs(np.int32(images) - np.int32(whole)).max() <= 1 and np.ptp(images) > 50


def test_the_sampling_process_is_that_of_the_config(tiny):
  sample = {'seed': 5, 'cfg_scale': 2.5, 'clip_x0': True, 'guide_channels': 1, 'num_steps': 7}
  generator = tiny(**{f'sample.{name}': value for name, value in sample.items()}).generator()
  found = {name: getattr(generator, name) for name in ('seed', 'clip_x0', 'guide_channels')}
  found |= {'cfg_scale': generator.guidance.scale, 'num_steps': len(generator.times) - 1}
  assert found == sample
  assert not tiny().generator().clip_x0 and generator.null_label == 10


def test_seed_scale_and_interval_are_arguments_of_one_program(tiny):
  """The program is traced once for all of them, and again without guidance or interval."""
  experiment, traced = tiny(**{'sample.cfg_scale': 2.0}), []
  network = experiment.objective.network
  vars(experiment)['objective'] = dataclasses.replace(
    experiment.objective, network=lambda parts: traced.append(1) or network(parts)
  )
  weights = Weights({'model': shaken(experiment)})

  def made(experiment, labels=(1, 2)):
    index = np.arange(2, dtype=np.uint32)
    return compile_generate(experiment, experiment.generator(), 2)(
      weights, index, np.asarray(labels, np.int32)
    )[0]

  images = [made(experiment), made(experiment, (3, 4))]
  for changes in ({'sample.seed': 2**40 + 3}, {'sample.cfg_scale': 4.0}):
    images.append(made(with_settings(experiment, changes)))
  assert len(traced) == 1
  assert len({np.asarray(image).tobytes() for image in images}) == 4
  made(with_settings(experiment, {'sample.cfg_scale': 1.0}))
  for interval in ((0.1, 5.0), (0.1, 1.0)):
    images.append(made(with_settings(experiment, {'sample.guidance.interval': interval})))
  assert len(traced) == 3
  assert len({np.asarray(image).tobytes() for image in images}) == 6


def test_what_guidance_remembers_goes_from_run_to_run(tiny):
  guidance = {'sample.cfg_scale': 4.0, 'sample.guidance.momentum': -0.7}
  experiment = tiny(**{'sample.num_steps': 10, **guidance})
  params, index = shaken(experiment), np.arange(4, dtype=np.uint32)
  labels, generator = np.arange(4, dtype=np.int32), experiment.generator()
  made = compile_generate(experiment, generator, 4)(Weights({'model': params}), index, labels)[0]
  network = experiment.objective.network({'model': params})
  x_0 = jax.jit(lambda: generator(network, index, labels)[0])()
  assert np.abs(to_uint8(x_0).astype(int) - made).max() <= 1
  forgetful = dataclasses.replace(generator, guidance=generator.guidance._replace(momentum=None))
  other = compile_generate(experiment, forgetful, 4)(Weights({'model': params}), index, labels)[0]
  assert np.any(other != made)


def test_cached_samples_are_those_of_the_loop_in_one_piece(tiny):
  """From run to run the cache goes with the state, guided; and with all steps run, nothing changes."""
  experiment = tiny(**{'sample.num_steps': 20, 'sample.cfg_scale': 4.0, 'sample.cache.interval': 3})
  params, index = shaken(experiment), np.arange(4, dtype=np.uint32)
  labels, generator = np.arange(4, dtype=np.int32), experiment.generator()

  def made(generator):
    program = compile_generate(experiment, generator, 4)
    return program(Weights({'model': params}), index, labels)[0].astype(int)

  network = experiment.objective.cachable({'model': params})
  x_0 = jax.jit(lambda: generator(network, index, labels)[0])()
  cached = made(generator)
  assert np.abs(to_uint8(x_0).astype(int) - cached).max() <= 1
  plain = made(dataclasses.replace(generator, caching=None))
  assert np.any(plain != cached)
  always = dataclasses.replace(generator.caching, first=20)
  assert np.abs(made(dataclasses.replace(generator, caching=always)) - plain).max() <= 1


@pytest.mark.parametrize('steps, length', [(3, 1), (50, 5), (97, 1), (100, 10), (1000, 100)])
def test_a_batch_is_made_in_ten_runs_or_more(steps, length):
  assert run_length(steps) == length


@pytest.mark.parametrize(
  'sampler',
  ['ddim', 'ddpm', *(pytest.param(name, marks=pytest.mark.slow) for name in ('unipc', 'heun'))],
)
def test_a_sample_does_not_depend_on_its_batch(tiny, sampler):
  """To 1e-5 before it is quantised, guided, from parameters that are not those of the start."""
  experiment = tiny(**{'sampler.name': sampler, 'sample.cfg_scale': 2.0})
  params = shaken(experiment)
  network, generator = experiment.objective.network({'model': params}), experiment.generator()

  def made(size):
    index, labels = np.arange(12, dtype=np.uint32), np.arange(12, dtype=np.int32) % 10
    parts = [slice(start, start + size) for start in range(0, 12, size)]
    generate = jax.jit(lambda i, y: generator(network, i, y)[0])
    return np.concatenate([generate(index[part], labels[part]) for part in parts])

  whole = made(12)
  assert whole.std() > 0.1
  for size in (2, 3):
    np.testing.assert_allclose(made(size), whole, rtol=0, atol=1e-5)
