"""The variational bound against closed forms: Gaussians, all 256 levels, and Gaussian data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from diffusion_jax.diffusion import variational_bound
from diffusion_jax.diffusion.process import Process
from diffusion_jax.objectives.denoising import Denoising
from diffusion_jax.randomness import example_keys, fold_in_each, normal_each, purpose_key
from tests.diffusion.test_schedules import build, time_sampling

LEVELS = np.arange(256) / 127.5 - 1
SHAPE = (8, 2, 2, 3)


@pytest.mark.parametrize('difference, q, p', [(0, 0.3, 0.3), (0.5, 0.2, 0.9), (-1.5, 2.0, 0.4)])
def test_kl_is_the_integral_of_its_definition(difference, q, p):
  density_q, density_p = scipy.stats.norm(0, q**0.5), scipy.stats.norm(difference, p**0.5)
  expected, _ = scipy.integrate.quad(
    lambda x: density_q.pdf(x) * (density_q.logpdf(x) - density_p.logpdf(x)), -15, 15
  )
  found = variational_bound.gaussian_kl(*map(jnp.float32, (difference, np.log(q), np.log(p))))
  assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize('mean', [-1.3, -0.2, 0.004, 0.999, 3.0])
@pytest.mark.parametrize('scale', [1e-3, 0.01, 0.5])
def test_levels_have_their_share_of_the_gaussian_and_sum_to_one(mean, scale):
  found = jax.jit(variational_bound.discretised_log_likelihood)(
    jnp.asarray(LEVELS, jnp.float32), jnp.float32(mean), jnp.log(jnp.float32(scale))
  )
  assert np.all(np.isfinite(found))
  assert float(jnp.exp(found).sum()) == pytest.approx(1, abs=1e-5)
  cdf = scipy.stats.norm(mean, scale).cdf
  edges = np.concatenate([[-np.inf], (LEVELS[1:] + LEVELS[:-1]) / 2, [np.inf]])
  np.testing.assert_allclose(np.exp(found), np.diff(cdf(edges)), rtol=1e-3, atol=1e-6)


def test_levels_far_from_the_mean_have_their_logarithm_and_a_gradient():
  """100 deviations away, where the probability itself is 0 in any float format.

  There log P(level) = log pdf(nearest edge) - log(distance / scale) + O((scale / distance)^2), the
  tail of a Gaussian beyond the edge (Mills' ratio); its far edge does not matter.
  """
  x, mean, scale = LEVELS[100], LEVELS[100] - 1.0, 0.01
  value, slope = jax.value_and_grad(variational_bound.discretised_log_likelihood, argnums=2)(
    *map(jnp.float32, (x, mean, np.log(scale)))
  )
  z = (x - mean - 1 / 255) / scale
  expected = -(z**2) / 2 - np.log(np.sqrt(2 * np.pi) * z)
  assert float(value) == pytest.approx(expected, rel=1e-5)
  assert float(slope) == pytest.approx(z**2 + 1, rel=1e-3)


@pytest.mark.parametrize('c', [0.0, 0.1, 0.4, 1.0])
@pytest.mark.parametrize('index', [2, 40, 500, 1000])
def test_the_best_variance_for_gaussian_data_is_the_true_one(c, index):
  """Data N(mu, c^2), the network's mean exact: L_vlb is smallest at v where p has Var(x_s | x_t).

  Given x_t, x0 is N(E[x0 | x_t], C0), and L_vlb's mean over it is, up to a constant,
    (log p + (q + g^2 C0) / p) / 2,   q the posterior variance, g = alpha_s sigma_ts^2 / sigma_t^2,
  smallest at p = q + g^2 C0, the law of total variance for Var(x_s | x_t). The same number without
  x0: x_s is N(., V) with V = alpha_s^2 c^2 + sigma_s^2, and x_t = alpha_ts x_s + sigma_ts noise, so
    1 / Var(x_s | x_t) = 1 / V + alpha_ts^2 / sigma_ts^2.
  c = 0 gives the lower bound, and c = 1 (V = 1) the upper one, beta: between them it is inside.
  L_vlb is quadratic in x0, so its mean over two values one deviation around is the exact one.
  """
  with jax.enable_x64():
    schedule, mu = build('linear'), 0.3
    bar_t, bar_s = schedule.alpha_bar[[index, index - 1]]
    beta, big_v = 1 - bar_t / bar_s, bar_s * c**2 + 1 - bar_s
    variance = 1 / (1 / big_v + (1 - beta) / beta)
    small, large = np.log((1 - bar_s) / (1 - bar_t) * beta), np.log(beta)
    best = (np.log(variance) - small) / (large - small) * 2 - 1
    x_t = 0.2
    total = bar_t * c**2 + 1 - bar_t
    mean_x0 = mu + np.sqrt(bar_t) * c**2 * (x_t - np.sqrt(bar_t) * mu) / total
    deviation = c * np.sqrt((1 - bar_t) / total)

    def bound(v):
      x0 = jnp.asarray([mean_x0 - deviation, mean_x0 + deviation]).reshape(2, 1, 1, 1)
      t = jnp.full(2, index / 1000)
      fraction = jnp.full_like(x0, (v + 1) / 2)
      return variational_bound.term(
        schedule, x0, jnp.full_like(x0, x_t), t, jnp.full_like(x0, mean_x0), fraction
      ).mean()

    assert -1 - 1e-6 <= best <= 1 + 1e-6
    slope, curvature = jax.jit(jax.value_and_grad(jax.grad(bound)))(best)
  assert float(curvature) > 0
  assert float(slope / curvature) == pytest.approx(0, abs=1e-6)  # Newton's step to the optimum.


def terms_in_float64(x0, x_t, index, mean_x0, v):
  """Ho et al. 2020, Eq. 5-7 and 13, Nichol & Dhariwal 2021, Eq. 15, from betas, with scipy."""
  betas = np.linspace(1e-4, 0.02, 1000)
  bars = np.append(1.0, np.cumprod(1 - betas))
  posterior = np.append(np.nan, betas * (1 - bars[:-1]) / (1 - bars[1:]))  # By index 1..T.
  found = []
  for x, y, i, m, w in zip(x0, x_t, index, mean_x0, v):
    beta = betas[i - 1]
    on_x0 = np.sqrt(bars[i - 1]) * beta / (1 - bars[i])
    on_x_t = np.sqrt(1 - beta) * (1 - bars[i - 1]) / (1 - bars[i])
    small, large = np.log(posterior[max(i, 2)]), np.log(beta)
    variance = np.exp((w + 1) / 2 * large + (1 - w) / 2 * small)
    mean_p, mean_q = on_x0 * m + on_x_t * y, on_x0 * x + on_x_t * y
    if i == 1:
      upper = np.where(x > 0.999, np.inf, x + 1 / 255)
      lower = np.where(x < -0.999, -np.inf, x - 1 / 255)
      normal = scipy.stats.norm(mean_p, np.sqrt(variance))
      nats = -np.log(normal.cdf(upper) - normal.cdf(lower))
    else:
      q = posterior[i]
      nats = np.log(variance / q) / 2 + (q + (mean_p - mean_q) ** 2) / (2 * variance) - 0.5
    found.append(np.mean(nats) / np.log(2))
  return np.array(found)


def test_terms_are_those_of_the_papers():
  random = np.random.default_rng(0)
  index = np.array([1, 1, 2, 3, 50, 500, 999, 1000])
  x0 = LEVELS[random.integers(0, 256, SHAPE)]
  x0[0, 0] = 1
  x0[1, 0] = -1
  bar = build('linear').alpha_bar[index].reshape(-1, 1, 1, 1)
  x_t = np.sqrt(bar) * x0 + np.sqrt(1 - bar) * random.normal(size=SHAPE)
  mean_x0 = x0 + np.sqrt((1 - bar) / bar) * 0.3 * random.normal(size=SHAPE)
  v = random.uniform(-1.2, 1.2, SHAPE)
  term = jax.jit(functools.partial(variational_bound.term, build('linear')))
  found = term(
    *(jnp.asarray(x, jnp.float32) for x in (x0, x_t, index / 1000, mean_x0, (v + 1) / 2)),
  )
  assert found.shape == (8,) and found.dtype == jnp.float32
  expected = terms_in_float64(x0, x_t, index, mean_x0, v)
  np.testing.assert_allclose(found, expected, rtol=2e-3)
  with jax.enable_x64():
    exact = term(*map(jnp.asarray, (x0, x_t, index / 1000, mean_x0, (v + 1) / 2)))
  np.testing.assert_allclose(exact, expected, rtol=1e-9)


def hybrid(output, *, train=True, prediction='eps', **changes):
  """The loss of a network with this output, of data 0.5, at 4 timesteps, the first one too."""
  schedule = build('linear', num_timesteps=4)
  loss = Denoising(**{'vlb_weight': 0.1, **changes}).loss
  settings = dict(process=Process(schedule, prediction, True), null_label=0, train=train)
  keys = example_keys(purpose_key(0, 'test'), jnp.arange(SHAPE[0]))
  x0 = jnp.full(SHAPE, 0.5)
  return loss(lambda *_: output, x0, {}, keys, **settings), keys


OUTPUT = jax.random.normal(jax.random.key(3), (*SHAPE[:3], 2 * SHAPE[3])) / 2


@pytest.mark.parametrize('prediction', ['eps', 'v', 'x0', 'velocity'])
@pytest.mark.parametrize('weighting', ['none', 'min_snr'])
def test_each_loss_reaches_its_own_channels(prediction, weighting):
  def gradient(vlb_weight):
    options = dict(prediction=prediction, weighting=weighting, vlb_weight=vlb_weight)
    return jax.jit(jax.grad(lambda output: hybrid(output, **options)[0].sum()))(OUTPUT)

  simple, both = gradient(0.0), gradient(0.1)
  mean, variance = slice(0, 3), slice(3, 6)
  np.testing.assert_array_equal(simple[..., variance], 0)
  np.testing.assert_array_equal(both[..., mean], simple[..., mean])
  assert np.all(np.isfinite(both)) and np.all(both[..., variance] != 0)
  assert np.all(simple[..., mean] != 0)


def test_the_hybrid_loss_is_the_sum_in_training_and_the_simple_one_otherwise():
  found, keys = hybrid(OUTPUT)
  schedule = build('linear', num_timesteps=4)
  draw = time_sampling()
  t = schedule.snap(jax.vmap(lambda key: draw(key, (), schedule))(fold_in_each(keys, 0)))
  eps, x0 = normal_each(fold_in_each(keys, 1), SHAPE[1:]), jnp.full(SHAPE, 0.5)
  simple = jnp.mean((OUTPUT[..., :3] - eps) ** 2, axis=(1, 2, 3))
  process = Process(schedule, 'eps')
  x_t = process.corrupt(x0, eps, t)
  mean_x0 = process.to_prediction(OUTPUT[..., :3], x_t, t).x0
  term = variational_bound.term(schedule, x0, x_t, t, mean_x0, (OUTPUT[..., 3:] + 1) / 2)
  assert set(np.round(np.asarray(t) * 4)) == {1, 2, 3, 4}
  np.testing.assert_allclose(found, simple + 0.1 * 4 * term, rtol=1e-5)
  np.testing.assert_allclose(hybrid(OUTPUT, train=False)[0], simple, rtol=1e-6)
