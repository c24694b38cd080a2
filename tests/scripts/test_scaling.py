"""Bytes between devices, by hand, and the page that the script prints."""

import math
from pathlib import Path

import pytest
from jax.sharding import PartitionSpec

from scripts import scaling
from scripts.scaling import Model, Traffic, least_batch, of_parameter

AXES = {'data': 2, 'fsdp': 4, 'tensor': 2}
BOTH = ('fsdp', 'tensor')


@pytest.mark.parametrize(
  ('spec', 'values'),
  [
    ((), 2 * 7 / 8 * 1000),  # Summed over the eight that share the batch, there and back.
    (
      ('fsdp',),
      (2 * 3 / 4 + 3 / 4 + 2 / 4 / 2) * 1000,
    ),  # Gathered twice, scattered, a part summed over data.
    (('fsdp', 'tensor'), (2 * 3 / 4 + 3 / 4 + 2 / 4 / 2) * 500),  # The same for half of it.
    (('tensor',), 2 * 7 / 8 * 500),
    ((BOTH,), (2 * 7 / 8 + 3 / 4 + 2 / 8 / 2) * 1000),
  ],
)
def test_bytes_of_a_parameter(spec, values):
  assert of_parameter(1000, PartitionSpec(*spec), AXES) == pytest.approx(4 * values)


def test_on_one_device_nothing_moves():
  one = dict.fromkeys(AXES, 1)
  assert (
    of_parameter(1000, PartitionSpec(), one) == of_parameter(1000, PartitionSpec(BOTH), one) == 0
  )


def test_the_least_batch_computes_as_long_as_it_moves():
  model = Model({}, flops=600, summed=0)
  batch = least_batch(model, Traffic(1000, 8), AXES, flops=100, received=10)
  one = batch / 8  # Images of a group of two devices, eight groups.
  assert one * 600 / 2 / 100 == pytest.approx((1000 + 8 * one) / 10)
  assert math.isinf(least_batch(model, Traffic(1000, 31), AXES, flops=100, received=10))


def test_the_page_is_what_the_script_prints():
  """Which also has, for DiT-XL/2 whole on 8 devices, 2 x 7/8 x 4 bytes of 674,834,720 parameters."""
  page = Path('docs/scaling.md').read_text()
  assert scaling.page() == page
  assert f'| 8 | replicated | 8x1x1 | {2 * 7 / 8 * 4 * 674_834_720 / 1e9:.2f} GB | 0 |' in page
