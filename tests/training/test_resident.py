"""Data on the device: the same order, the same pixels, the same training."""

import jax
import numpy as np
import pytest

from diffusion_jax.data.pipeline import Numbers, train_batches
from diffusion_jax.runtime import mesh
from diffusion_jax.training import resident


def test_gathered_batches_are_those_that_are_read(tiny):
  experiment = tiny()
  source, devices = experiment.train_data, experiment.mesh
  data = resident.load(source, devices)
  gather = jax.jit(lambda data, number: resident.gather(data, number, devices))
  options = dict(seed=1, batch_size=16, start_step=90, stop_step=97)  # Over the end of an epoch.
  pairs = zip(train_batches(source, **options), train_batches(Numbers(source), **options))
  for read, numbers in pairs:
    number = mesh.to_devices(numbers, mesh.batch_sharding(devices))['number']
    gathered = gather(data, number)
    assert gathered.keys() == read.keys()
    for name, values in gathered.items():
      assert values.dtype == read[name].dtype
      np.testing.assert_array_equal(values, read[name])


@pytest.mark.slow
@pytest.mark.unoptimised
def test_training_is_bit_identical(tiny):
  states = {}
  for is_resident in (False, True):
    experiment = tiny(**{'data.device_resident': is_resident, 'data.flip': True})
    step = experiment.compile_steps(0)
    sharding = mesh.batch_sharding(experiment.mesh)
    shardings = jax.tree.map(lambda x: x.sharding, experiment.abstract_state)
    state = jax.jit(experiment.init_state, out_shardings=shardings)()
    batches = train_batches(experiment.step_input, seed=0, batch_size=16, start_step=0, stop_step=3)
    for number, batch in enumerate(batches, 1):
      assert set(batch) == ({'number'} if is_resident else {'image', 'label'})
      state, metrics = step(number, state, mesh.to_devices(batch, sharding))
    states[is_resident] = jax.device_get((state.params, metrics['loss']))
  jax.tree.map(np.testing.assert_array_equal, *states.values())
