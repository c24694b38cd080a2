"""Orders of convergence, in float64, on data whose denoiser is known: Gaussians and mixtures of two.

One dimension is enough. The probability flow keeps the share of the distribution that lies below x_t, so its
end is the quantile there of the share that the start has: an exact reference that integrates nothing.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp
from scipy.special import ndtr

from diffusion_jax.config.plugins import make_plugin
from diffusion_jax.diffusion.process import PREDICTION_TYPES, Process
from diffusion_jax.diffusion.samplers.base import continue_sampling, start_sampling, steps_along
from diffusion_jax.randomness import example_keys, purpose_key
from diffusion_jax.types import NoiseLevel, Prediction
from tests.diffusion.test_schedules import NAMES as SCHEDULES
from tests.diffusion.test_schedules import build

NUM_STEPS = np.array([40, 80, 160, 320])
START, END = 0.95, 0.05
# Two parts each: three Gaussians, whose errors do not cross 0 at the same number of steps, and two mixtures.
WEIGHTS = np.array([[1, 0], [1, 0], [1, 0], [0.3, 0.7], [0.6, 0.4]])
MEANS = np.array([[0.7, 0], [-0.3, 0], [0.2, 0], [-0.6, 0.6], [0.3, -0.8]])
DEVIATIONS = np.array([[0.4, 1], [0.7, 1], [1.3, 1], [0.5, 0.4], [0.6, 0.45]])
KINDS = {'gaussian': slice(0, 3), 'mixture': slice(3, 5)}
QUANTILES = np.array([-1.4, -0.5, 0.3, 1.1])  # Paths start at these of a normal distribution.


def parts(level, x):
  """x (..., data, points) and every part's deviation and distance from x (..., data, points, 2)."""
  alpha, sigma = level
  deviation = jnp.sqrt((alpha * DEVIATIONS[:, None]) ** 2 + sigma**2)
  return deviation, x[..., None] - alpha * MEANS[:, None]


def exact_x0(level, x):
  """E[x0 | x_t]: every part's, weighted by its share of the density at x."""
  deviation, distance = parts(level, x)
  logits = jnp.log(WEIGHTS[:, None]) - (distance / deviation) ** 2 / 2 - jnp.log(deviation)
  each = MEANS[:, None] + level.alpha * DEVIATIONS[:, None] ** 2 * distance / deviation**2
  return jnp.sum(jax.nn.softmax(logits, axis=-1) * each, axis=-1)


def exact_end(start, end, x):
  """The end of the probability flow from x (data, points) between two noise levels, by bisection."""

  def below(level, x):
    deviation, distance = map(np.asarray, parts(level, x))
    return np.sum(WEIGHTS[:, None] * ndtr(distance / deviation), axis=-1)

  share, low, high = below(start, x), np.full(x.shape, -500.0), np.full(x.shape, 500.0)
  for _ in range(80):
    middle = (low + high) / 2
    right = below(end, middle) < share
    low, high = np.where(right, middle, low), np.where(right, high, middle)
  return (low + high) / 2


def level_at(name, t):
  return NoiseLevel(*map(float, build(name)(jnp.float64(t))))


def starts(name):
  """(data, points) of x at START: its mean, and QUANTILES of its deviation."""
  alpha, sigma = level_at(name, START)
  mean = np.sum(WEIGHTS * MEANS, axis=1)
  variance = np.sum(WEIGHTS * (DEVIATIONS**2 + MEANS**2), axis=1) - mean**2
  return alpha * mean[:, None] + np.sqrt(alpha**2 * variance + sigma**2)[:, None] * QUANTILES


def even_times(name, num_steps):
  """From START to END, evenly in log SNR."""
  ends = [2 * np.log(n.alpha / n.sigma) for n in (level_at(name, START), level_at(name, END))]
  return np.asarray(build(name).time_at(jnp.linspace(*ends, num_steps + 1)))


class OneOf:
  """The schedule of this number; a traced number makes one program for all of them."""

  def __init__(self, number):
    self.number = number

  def __call__(self, t):
    levels = [build(name)(t) for name in SCHEDULES]
    return NoiseLevel(*(jnp.stack(values)[self.number] for values in zip(*levels)))


def exact_denoiser(schedule):
  """x (types, data, points): every prediction type's, from a network that is exact for it."""

  def denoise(x, t):
    level = schedule(t)
    x0 = exact_x0(level, x)
    eps, found = (x - level.alpha * x0) / level.sigma, []
    for k, name in enumerate(PREDICTION_TYPES):
      process = Process(schedule, name)
      found.append(process.to_prediction(process.target(x0[k], eps[k], t), x[k], t))
    return Prediction(jnp.stack([p.x0 for p in found]), jnp.stack([p.eps for p in found]))

  return denoise


def errors(sampler, **options):
  """(step counts, schedules, types, data, points) float64 at END."""
  numbers, types = jnp.arange(len(SCHEDULES)), len(PREDICTION_TYPES)
  keys = example_keys(purpose_key(0, 'test'), jnp.arange(types))

  def make(number):
    return make_plugin('diffusion.samplers', sampler, schedule=OneOf(number), **options)

  @jax.jit
  @jax.vmap
  def advance(number, state, steps):
    return continue_sampling(make(number), exact_denoiser(OneOf(number)), keys, state, steps)

  x = np.stack([starts(name) for name in SCHEDULES])
  exact = [
    exact_end(level_at(name, START), level_at(name, END), row) for name, row in zip(SCHEDULES, x)
  ]
  x, found = np.repeat(x[:, None], types, axis=1), []
  for num_steps in NUM_STEPS:
    times = np.stack([even_times(name, num_steps) for name in SCHEDULES])
    state = jax.vmap(lambda n, x: start_sampling(make(n), x, times[0]))(numbers, jnp.asarray(x))  # noqa: B023
    for steps in zip(*(steps_along(row).cut(1) for row in times)):
      state = advance(numbers, state, jax.tree.map(lambda *rows: np.stack(rows), *steps))
    found.append(np.asarray(state.x_t) - np.stack(exact)[:, None])
  return np.stack(found)


@pytest.mark.parametrize(
  'sampler, options, order',
  [
    ('ddim', {}, 1),
    pytest.param('euler', {}, 1, marks=pytest.mark.slow),  # DDIM's step.
    ('heun', {}, 2),
    pytest.param('heun', {'variable': 'sigma'}, 2, marks=pytest.mark.slow),
    ('dpmpp_2m', {}, 2),
    ('deis', {'lower_order_final': False, 'order': 2}, 2),
    pytest.param('deis', {'order': 2}, 2, marks=pytest.mark.slow),
    ('unipc', {'lower_order_final': False}, 3),
    ('unipc', {'lower_order_final': False, 'order': 3}, 4),
    pytest.param('unipc', {'lower_order_final': False, 'b_h': 'bh1'}, 3, marks=pytest.mark.slow),
    ('unipc', {}, 2),
    pytest.param('unipc', {'order': 3}, 2, marks=pytest.mark.slow),
  ],
)
def test_orders(sampler, options, order):
  """For every schedule, prediction type and kind of data: the slope over all step counts.

  UniPC's corrector adds an order, and one step of order 1 at the end takes all beyond the second.
  """
  with jax.enable_x64():
    found = errors(sampler, **options)
  for kind, rows in KINDS.items():
    size = np.sqrt(np.mean(found[:, :, :, rows] ** 2, axis=(-2, -1)))  # (counts, schedules, types)
    slopes = -np.polyfit(np.log(NUM_STEPS), np.log(size.reshape(len(size), -1)), 1)[0]
    assert np.all(slopes >= order - 0.25), kind
    assert np.all(slopes < order + 0.9), kind
    assert np.ptp(np.log(size), axis=2).max() < 1e-3, kind  # All prediction types are the same x0.


@pytest.mark.parametrize('order, is_final', [(2, False), (3, False), (3, True)])
def test_deis_integrates_polynomials_of_its_order(order, is_final):
  """x / alpha moves by the integral of eps over rho, eps = l^(order - 1) for l = -log rho.

  The first steps know too few values, and lower_order_final makes the last of order 1: these are not exact.
  """
  with jax.enable_x64():
    schedule, degree, times = build('rectified_flow'), order - 1, np.linspace(0.9, 0.1, 9)
    solver = make_plugin(
      'diffusion.samplers', 'deis', schedule=schedule, order=order, lower_order_final=is_final
    )

    def denoise(x, t):
      level = schedule(t)
      eps = jnp.full_like(x, (-jnp.log(level.sigma / level.alpha)) ** degree)
      return Prediction((x - level.sigma * eps) / level.alpha, eps)

    x = jnp.ones((1, 1, 1, 1), jnp.float64)
    carry, errors = solver.init(x, times), []
    for t, s in itertools.pairwise(times):
      after, carry = solver.step(None, x, jnp.float64(t), jnp.float64(s), denoise, carry)
      moved = float(np.squeeze(after / (1 - s) - x / (1 - t)))
      rho_t, rho_s = t / (1 - t), s / (1 - s)
      exact, _ = quad(lambda rho: (-np.log(rho)) ** degree, rho_t, rho_s, epsabs=1e-13)
      x, errors = after, [*errors, abs(moved - exact)]
  num_exact = len(errors) - (order - 1) - (2 if is_final else 0)
  assert np.count_nonzero(np.array(errors) < 1e-11) == num_exact, errors
  assert max(errors[order - 1 : order - 1 + num_exact]) < 1e-11


@pytest.mark.parametrize('name', SCHEDULES)
def test_the_exact_end_solves_the_probability_flow(name):
  """dx / d(sigma / alpha), for x / alpha, is eps; integrated finely."""
  with jax.enable_x64():
    start, end, x = level_at(name, START), level_at(name, END), starts(name)

    def slope(s, y):
      level = NoiseLevel(1.0, s)
      x = y.reshape(len(WEIGHTS), -1)
      return ((x - np.asarray(exact_x0(level, jnp.asarray(x)))) / s).ravel()

    span = (start.sigma / start.alpha, end.sigma / end.alpha)
    solved = solve_ivp(slope, span, x.ravel() / start.alpha, 'DOP853', rtol=1e-12, atol=1e-13)
    found = end.alpha * solved.y[:, -1].reshape(x.shape)
    np.testing.assert_allclose(found, exact_end(start, end, x), rtol=1e-9, atol=1e-10)
