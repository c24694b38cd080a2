"""Whole runs of solvers that draw noise: mean and variance in closed form on Gaussian data.

With data N(mu, c^2) every state is linear in the noise x_T and the z of the steps. A row of coefficients, of
the constant, x_T and z_1, ..., z_N, goes through each paper's equations in float64; its mean is the first
coefficient, its variance the sum of the others' squares. So discretisation plays no part.
"""

import importlib

import jax
import numpy as np
import pytest

from tests.diffusion.test_samplers import MU, C, exact_denoiser, keys_of, sampler
from tests.diffusion.test_schedules import build
from tests.diffusion.test_schedules import times as times_of
from tests.support.samplers import run_sampler

COUNT, NUM_STEPS = 200_000, 8
CHURN = {'s_tmin': 0.5, 's_tmax': 5.0, 's_noise': 1.1}  # Levels lie on both sides of these.
SOLVERS = {
  'ddpm-small': ('ddpm', {'variance': 'fixed_small'}),
  'ddpm-large': ('ddpm', {'variance': 'fixed_large'}),
  'ddim-ancestral': ('ddim', {'eta': 1.0}),
  'dpmpp_2m-sde': ('dpmpp_2m', {'sde': True}),
  'euler-churn': ('euler', {**CHURN, 's_churn': 16.0}),  # More than gamma's limit.
  'heun-churn': ('heun', {**CHURN, 's_churn': 3.0, 'variable': 'sigma'}),
}


def expected(name, alpha, sigma):
  """(mean, variance) at the end of the levels (N+1,) float64, noise first."""
  noises = np.eye(NUM_STEPS + 2)[2:]
  x, before = np.eye(NUM_STEPS + 2)[1], None
  one = np.eye(NUM_STEPS + 2)[0]

  def denoised(x, a, s):  # x is a x0 + s eps.
    return MU * one + a * C**2 / (a**2 * C**2 + s**2) * (x - a * MU * one)

  for k, z in enumerate(noises):
    (a_t, a_s), (s_t, s_s) = alpha[k : k + 2], sigma[k : k + 2]
    x0 = denoised(x, a_t, s_t)
    if name.startswith('ddpm'):  # Ho et al. 2020, Eq. 6 and 7.
      beta = 1 - (a_t / a_s) ** 2
      variance = beta if name == 'ddpm-large' else s_s**2 / s_t**2 * beta
      mean = a_s * beta / s_t**2 * x0 + a_t / a_s * s_s**2 / s_t**2 * x
      x = mean + np.sqrt(variance * (s_s > 0)) * z
    elif name == 'ddim-ancestral':  # Song et al. 2021, Eq. 12 and 16.
      noise = s_s / s_t * np.sqrt(1 - (a_t / a_s) ** 2)
      x = a_s * x0 + np.sqrt(s_s**2 - noise**2) * (x - a_t * x0) / s_t + noise * z
    elif name == 'dpmpp_2m-sde':  # Lu et al. 2022, the SDE form of 2M.
      q = np.divide(s_s * a_t, a_s * s_t)  # e^-h
      h = -np.log(q) if q > 0 else np.inf
      d = x0 if before is None or q == 0 else x0 + h / (2 * before[1]) * (x0 - before[0])
      x = s_s / s_t * q * x + a_s * (1 - q**2) * d + s_s * np.sqrt(1 - q**2) * z
      before = x0, h
    else:  # Karras et al. 2022, Algorithm 2, in y = x / alpha and sigma / alpha.
      low, high, y = s_s / a_s, s_t / a_t, x / a_t
      if CHURN['s_tmin'] <= high <= CHURN['s_tmax']:
        raised = high * (1 + min(SOLVERS[name][1]['s_churn'] / NUM_STEPS, np.sqrt(2) - 1))
        y, high = y + CHURN['s_noise'] * np.sqrt(raised**2 - high**2) * z, raised
      slope = (y - denoised(y, 1, high)) / high
      end = y + (low - high) * slope
      if name == 'heun-churn' and low > 0:
        end = y + (low - high) / 2 * (slope + (end - denoised(end, 1, low)) / low)
      x = a_s * end
  return x[0], np.sum(x[1:] ** 2)


@pytest.mark.parametrize('name', SOLVERS)
def test_mean_and_variance_of_the_end(name, monkeypatch):
  """Within 4 standard errors of 200,000; noise that is 5% too strong is seen."""
  kind, options = SOLVERS[name]
  module = importlib.import_module(
    'diffusion_jax.diffusion.samplers.' + ('churn' if 'churn' in name else kind)
  )
  schedule, draw = build('linear'), module.normal_each
  times = times_of(schedule, NUM_STEPS, 'linspace')
  table = schedule.alpha_bar[np.round(times * 1000).astype(int)]
  mean, variance = expected(name, np.sqrt(table), np.sqrt(1 - table))
  x_T = jax.random.normal(jax.random.key(1), (COUNT, 1, 1, 1))
  x_T = (x_T - x_T.mean()) / x_T.std()

  @jax.jit
  def run(scale):
    monkeypatch.setattr(module, 'normal_each', lambda keys, shape: scale * draw(keys, shape))
    solver = sampler(kind, schedule, **options)
    return run_sampler(solver, exact_denoiser(schedule), x_T, keys_of(COUNT), times)[0]

  for scale in (1.0, 1.05):
    found = run(scale)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * np.sqrt(variance / COUNT))
    seen = float(found.var()) != pytest.approx(variance, rel=4 * np.sqrt(2 / COUNT))
    assert seen == (scale != 1)
