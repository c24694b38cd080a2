"""Times of sampling against the published tables and equations."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.plugins import plugin_names
from tests.diffusion.test_schedules import NAMES as SCHEDULES
from tests.diffusion.test_schedules import build, times

NAMES = plugin_names('diffusion.spacings')
TABLE = ['trailing', 'leading', 'linspace']  # Spacings that stay on the table.


def indices(num_steps, spacing):
  return np.round(times(build('linear'), num_steps, spacing) * 1000).astype(int)


def test_all_are_found():
  assert set(NAMES) == {*TABLE, 'karras', 'log_snr', 'shifted'}


@pytest.mark.parametrize('spacing', NAMES)
@pytest.mark.parametrize('name', SCHEDULES)
def test_contract(name, spacing):
  if (name, spacing) in (('rectified_flow', 'leading'), ('variance_exploding', 'leading')):
    pytest.skip('there is no table to stride')
  if (name, spacing) == ('rectified_flow', 'karras'):
    pytest.skip('sigma / alpha is infinite at t = 1')
  schedule = build(name)
  for num_steps in (1, 10):
    found = times(schedule, num_steps, spacing)
    assert found.dtype == np.float64 and len(found) == num_steps + 1
    assert found[0] <= 1 and found[-1] == 0 and np.all(np.diff(found) < 0)
  with pytest.raises(ValueError, match='num_steps'):
    times(schedule, 0, spacing)


def test_published_tables():
  # Timesteps (our index - 1) of Lin et al. 2024, Table 2, for T = 1000 and 5 steps.
  np.testing.assert_array_equal(indices(5, 'trailing')[:-1] - 1, [999, 799, 599, 399, 199])
  np.testing.assert_array_equal(indices(5, 'leading')[:-1] - 1, [800, 600, 400, 200, 0])
  # np.linspace(0, 999, 5) is 0, 249.75, 499.5, 749.25, 999.
  np.testing.assert_array_equal(indices(5, 'linspace')[:-1] - 1, [999, 749, 499, 250, 0])


@pytest.mark.parametrize('spacing', TABLE)
@pytest.mark.parametrize('num_steps', [1, 7, 50, 999, 1000])
def test_any_number_of_steps(spacing, num_steps):
  grid = indices(num_steps, spacing)
  assert len(grid) == num_steps + 1 and np.all(np.diff(grid) < 0) and grid[-1] == 0
  assert grid[0] <= 1000


@pytest.mark.parametrize('spacing', TABLE)
def test_more_steps_than_timesteps_are_refused(spacing):
  with pytest.raises(ValueError, match=r'got 1001, allowed 1\.\.1000 \(nearest 1000\)'):
    times(build('linear'), 1001, spacing)


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.parametrize('spacing', sorted({*NAMES} - {*TABLE}))
def test_continuous_spacings_have_any_number_of_steps(name, spacing):
  """In the float32 of a sampler, and on a table never below its first entry, where networks know nothing."""
  if (name, spacing) == ('rectified_flow', 'karras'):
    pytest.skip('sigma / alpha is infinite at t = 1')
  schedule = build(name)
  found = times(schedule, 3000, spacing).astype(np.float32)
  assert len(found) == 3001 and found[-1] == 0 and np.all(np.diff(found) < 0)
  if schedule.num_timesteps:
    assert schedule.network_time(jnp.asarray(found[:-1])).min() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
  'name, ends',
  [('rectified_flow', (80, 0.002)), ('linear', (80, 0.02)), ('variance_exploding', (7, 0.01))],
)
def test_log_snr_is_even(name, ends):
  """The levels are a geometric sequence; the highest is that of the schedule where it has less noise."""
  schedule = build(name, **({'sigma_max': 7.0} if name == 'variance_exploding' else {}))
  found = times(schedule, 6, 'log_snr', sigma_min=ends[1])
  alpha, sigma = schedule(jnp.asarray(found[:-1]))
  ratio = (ends[1] / ends[0]) ** (1 / 5)
  np.testing.assert_allclose(sigma / alpha, ends[0] * ratio ** np.arange(6), rtol=1e-4)
  with pytest.raises(ValueError, match="spacing: got 'log_snr'"):
    times(schedule, 6, 'log_snr', sigma_min=100.0)


@pytest.mark.parametrize('name', ['rectified_flow', 'cosine'])
def test_shifted_times_are_the_published_ones(name):
  """Esser et al. 2024, Eq. 23, with sqrt(m / n) = 3, in exact fractions; 1 is trailing on no table."""
  exact = [Fraction(3 * k, 4) / (1 + Fraction(2 * k, 4)) for k in range(4, -1, -1)]
  np.testing.assert_allclose(times(build(name), 4, 'shifted'), np.array(exact, float), rtol=1e-12)
  even = times(build('rectified_flow'), 4, 'trailing')
  np.testing.assert_allclose(times(build(name), 4, 'shifted', shift=1.0), even, rtol=1e-12)


@pytest.mark.parametrize('num_steps', [3, 7, 30, 999])
def test_trailing_times_are_rounded_to_the_nearest(num_steps):
  """T - k T / N in exact fractions (Lin et al. 2024, Table 2)."""
  exact = [round(Fraction(1000 * k, num_steps)) for k in range(num_steps, -1, -1)]
  np.testing.assert_array_equal(indices(num_steps, 'trailing'), exact)


@pytest.mark.parametrize('spacing', ['trailing', 'linspace'])
def test_without_a_table_times_are_even(spacing):
  found = times(build('rectified_flow'), 4, spacing)
  np.testing.assert_array_equal(found, [1, 0.75, 0.5, 0.25, 0])


def test_without_a_table_there_is_no_stride():
  with pytest.raises(ValueError, match="spacing: got 'leading'"):
    times(build('rectified_flow'), 4, 'leading')


@pytest.mark.parametrize('rho, sigma_min', [(7.0, 0.002), (3.0, 0.01)])
def test_karras_levels_are_the_published_ones(rho, sigma_min):
  """Eq. 5 with sigma_max = 80, whose sigma is 80 t here."""
  found = 80 * times(build('variance_exploding'), 18, 'karras', rho=rho, sigma_min=sigma_min)
  i = np.arange(18)
  ends = 80 ** (1 / rho), sigma_min ** (1 / rho)
  expected = (ends[0] + i / 17 * (ends[1] - ends[0])) ** rho
  np.testing.assert_allclose(found, [*expected, 0], rtol=1e-5)


@pytest.mark.parametrize('name, sigma_min', [('rectified_flow', 0.002), ('linear', 1e3)])
def test_karras_needs_levels_between_its_ends(name, sigma_min):
  with pytest.raises(ValueError, match="spacing: got 'karras'"):
    times(build(name), 10, 'karras', sigma_min=sigma_min)
