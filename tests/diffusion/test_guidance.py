"""Guidance against its formula, and its cost."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.config.options import options_of, require_options
from diffusion_jax.config.plugins import make_plugin, plugin_names
from diffusion_jax.diffusion.generate import Generator
from diffusion_jax.diffusion.guidance import GuidanceOptions, guidance_of, make_denoiser
from diffusion_jax.diffusion.process import Process
from tests.diffusion.test_schedules import build

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)), jnp.float32)
LABELS = jnp.asarray([0, 4, 7])
CONDITION = {'label': LABELS}
T = jnp.float32(0.5)


def denoise(cfg_scale, clip_x0=False, rows=None):
  """With a network whose output is x / 10 + label."""

  def network(x, time, condition):
    labels = condition['label']
    if rows is not None:
      rows.append(len(x))
    assert time.shape == labels.shape == (len(x),)
    return x / 10 + labels[:, None, None, None]

  process = Process(build('cosine'), 'v')
  options = dict(null_label=10, guidance=guidance_of(cfg_scale), clip_x0=clip_x0)
  return make_denoiser(network, process, CONDITION, **options)(X, T), process


@pytest.mark.parametrize('scale', [0.0, 1.0, 1.5, 4.0])
def test_guided_prediction_is_the_published_combination(scale):
  found, process = denoise(scale)
  cond = process.to_prediction(X / 10 + LABELS[:, None, None, None], X, T)
  uncond = process.to_prediction(X / 10 + 10.0, X, T)
  for name in ('x0', 'eps'):
    u, c = getattr(uncond, name), getattr(cond, name)
    np.testing.assert_allclose(getattr(found, name), u + scale * (c - u), rtol=1e-5, atol=1e-5)
  alpha, sigma = process.schedule(T)  # Still a decomposition of x_t.
  np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, X, atol=1e-4)


def test_further_conditions_are_kept_by_both_rows():
  seen = {}

  def network(x, time, condition):
    seen.update(condition)
    return x

  condition = {**CONDITION, 'width': jnp.asarray([1.0, 2.0, 3.0])}
  options = dict(null_label=10, guidance=guidance_of(2.0), clip_x0=False)
  make_denoiser(network, Process(build('cosine'), 'v'), condition, **options)(X, T)
  np.testing.assert_array_equal(seen['width'], [1, 1, 2, 2, 3, 3])
  np.testing.assert_array_equal(seen['label'], [0, 10, 4, 10, 7, 10])


def test_cost_is_one_pass_without_guidance_and_one_doubled_pass_with():
  for scale, expected in ((1.0, [3]), (2.0, [6])):
    rows = []
    denoise(scale, rows=rows)
    assert rows == expected


@pytest.mark.parametrize('clip_x0', [False, True])
@pytest.mark.parametrize('scale', [1.0, 3.0])
def test_learned_variance_is_that_of_the_labelled_row_and_not_guided(scale, clip_x0):
  def network(x, time, condition):
    v = jnp.broadcast_to(condition['label'][:, None, None, None] / 10, x.shape)
    return jnp.concatenate([x / 10, v], axis=-1)

  process = Process(build('cosine'), 'v', learned_variance=True)
  options = dict(null_label=10, guidance=guidance_of(scale), clip_x0=clip_x0)
  found = make_denoiser(network, process, CONDITION, **options)(X, T)
  expected = np.broadcast_to((LABELS[:, None, None, None] / 10 + 1) / 2, X.shape)
  np.testing.assert_allclose(found.variance, expected, rtol=1e-6)
  assert found.x0.shape == found.eps.shape == X.shape


def test_clipping_comes_after_guidance_and_eps_follows():
  found, process = denoise(3.0, clip_x0=True)
  plain, _ = denoise(3.0)
  np.testing.assert_allclose(found.x0, np.clip(plain.x0, -1, 1), atol=1e-6)
  assert np.abs(plain.x0).max() > 1
  alpha, sigma = process.schedule(T)
  np.testing.assert_allclose(found.eps, (X - alpha * found.x0) / sigma, atol=1e-5)


@pytest.mark.parametrize('scale', [0.0, 1.5, 4.0])
def test_three_of_four_channels_are_guided_as_the_published_dit_is_sampled(scale):
  """Its forward_with_cfg, in NumPy: eps[:3] is combined, the rest is the labelled row's."""
  rng = np.random.default_rng(1)
  x = rng.normal(size=(3, 2, 2, 4))
  outputs = {label: rng.normal(size=(2, 2, 8)) for label in (0, 4, 7, 10)}
  table = np.zeros((11, 2, 2, 8), np.float32)
  for label, output in outputs.items():
    table[label] = output
  process = Process(build('linear'), 'eps', learned_variance=True)
  options = dict(null_label=10, guidance=guidance_of(scale), clip_x0=False, guide_channels=3)
  denoise = make_denoiser(
    lambda x, time, condition: jnp.asarray(table)[condition['label']], process, CONDITION, **options
  )
  found = denoise(jnp.asarray(x, jnp.float32), jnp.float32(0.4))

  alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:400])
  for row, label in enumerate((0, 4, 7)):
    cond, uncond = outputs[label], outputs[10]
    half = uncond[..., :3] + scale * (cond[..., :3] - uncond[..., :3])
    eps = np.concatenate([half, cond[..., 3:4]], axis=-1)
    x0 = (x[row] - np.sqrt(1 - alpha_bar) * eps) / np.sqrt(alpha_bar)
    np.testing.assert_allclose(found.eps[row], eps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.x0[row], x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.variance[row], (cond[..., 4:] + 1) / 2, atol=1e-6)


def counted(network, rows):
  """The network, which notes at run time how many rows it is given."""

  def apply(x, time, condition):
    jax.debug.callback(functools.partial(rows.append, len(x)))
    return network(x, time, condition)

  return apply


def linear(x, time, condition):
  return (
    x / 10 + jnp.sin(condition['label'])[:, None, None, None] + time[:, None, None, None] / 1000
  )


def generator(sampler='ddim', num_steps=9, scale=2.5, clip_x0=False, **options):
  schedule = build('cosine')
  return Generator(
    Process(schedule, 'v'),
    make_plugin('diffusion.samplers', sampler, schedule=schedule),
    np.linspace(1, 0, num_steps + 1),
    (2, 2, 1),
    seed=3,
    null_label=10,
    guidance=guidance_of(scale, GuidanceOptions(**options)),
    clip_x0=clip_x0,
  )


@functools.partial(jax.jit, static_argnums=0)
def x_0(generator, arguments):
  """From the numbers of guidance as arguments, as the compiled programs have them."""
  index = jnp.arange(3, dtype=jnp.uint32)
  state = generator.start(generator.noise(index, arguments.seed))
  return generator.advance(linear, index, LABELS, state, generator.steps, arguments).x_t


def sampled(**settings):
  made = generator(**settings)
  return np.asarray(x_0(made, made.arguments))


def test_guidance_acts_inside_its_interval_alone_and_costs_nothing_outside():
  process, interval = Process(build('cosine'), 'v'), (0.4, 3.0)
  rows = []

  @jax.jit
  def denoise(guidance, t):
    options = dict(null_label=10, guidance=guidance, clip_x0=False)
    return make_denoiser(counted(linear, rows), process, CONDITION, **options)(X, t)

  for t in (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0):
    alpha, sigma = map(float, process.schedule(jnp.float32(t)))
    inside = interval[0] < sigma / alpha <= interval[1]
    denoise(guidance_of(2.0, GuidanceOptions(interval)), t)
    rows.clear()
    found = denoise(guidance_of(2.0, GuidanceOptions(interval)), t)
    jax.effects_barrier()
    assert rows == ([6] if inside else [3])
    expected = denoise(guidance_of(2.0 if inside else 1.0), t)
    np.testing.assert_array_equal(found.x0, expected.x0)
    np.testing.assert_array_equal(found.eps, expected.eps)


def test_an_interval_of_all_is_none_and_one_of_nothing_is_no_guidance():
  """Bit for bit where the compiler fuses nothing; fused with the step, some round otherwise (2e-6)."""
  plain, guided = sampled(scale=1.0), sampled()
  assert np.abs(plain - guided).max() > 0.1
  np.testing.assert_array_equal(sampled(interval=(0, 1e9)), guided)
  np.testing.assert_array_equal(sampled(interval=(1e8, 1e9)), plain)
  some = sampled(interval=(0.4, 3))
  assert np.abs(some - guided).max() > 0.01 and np.abs(some - plain).max() > 0.01


@pytest.mark.parametrize('name', plugin_names('diffusion.samplers'))
def test_evaluations_are_the_passes_that_the_network_makes(name):
  """Counted in the network, for every sampler."""
  made, rows = generator(name, num_steps=4, interval=(0.4, 3.0)), []
  index = jnp.arange(3, dtype=jnp.uint32)
  jax.block_until_ready(jax.jit(lambda: made(counted(linear, rows), index, LABELS))())
  jax.effects_barrier()
  calls = made.sampler.evaluations(4)
  assert calls < made.evaluations() == sum(rows) / 3 < 2 * calls
  assert len(made.call_times()) == calls
  assert generator(name, num_steps=4).evaluations() == 2 * calls
  assert generator(name, num_steps=4, scale=1.0, interval=(0.4, 3.0)).evaluations() == calls


def test_a_guide_takes_the_place_of_the_rows_without_labels():
  process, rows, guided_rows = Process(build('cosine'), 'v'), [], []

  def worse(x, time, condition):
    np.testing.assert_array_equal(condition['label'], LABELS)
    return 0.5 * linear(x, time, condition) + 0.2

  options = dict(null_label=10, clip_x0=False, guide=counted(worse, guided_rows))
  for interval, expected in ((), [3]), ((0.4, 3.0), [3]), ((3.0, 4.0), []):
    guidance = guidance_of(2.5, GuidanceOptions(interval))
    rows.clear(), guided_rows.clear()
    denoise = make_denoiser(counted(linear, rows), process, CONDITION, guidance=guidance, **options)
    found = denoise(X, T)
    jax.effects_barrier()
    assert rows == [3] and guided_rows == expected
    good, bad = (
      process.to_prediction(process.apply(network, X, T, CONDITION), X, T)
      for network in (linear, worse)
    )
    x0 = bad.x0 + 2.5 * (good.x0 - bad.x0) if expected else good.x0
    np.testing.assert_allclose(found.x0, x0, rtol=1e-5, atol=1e-5)


RNG = np.random.default_rng(7)
COND, UNCOND = (RNG.normal(size=(3, 4, 4, 2)) * [1, 3] for _ in range(2))


def found_x0(scale, clip_x0=False, guide_channels=0, prediction='x0', t=0.5, **options):
  """x0, and eps from x_t = 0.3, of a network that gives COND to labels and UNCOND to none."""
  process = Process(build('cosine'), prediction)
  cond, uncond = (jnp.asarray(x, jnp.float32) for x in (COND, UNCOND))

  def network(x, time, condition):
    labelled = condition['label'][:, None, None, None] != 10
    count = len(x) // len(cond)
    return jnp.where(labelled, jnp.repeat(cond, count, axis=0), jnp.repeat(uncond, count, axis=0))

  settings = dict(null_label=10, clip_x0=clip_x0, guide_channels=guide_channels)
  guidance = guidance_of(scale, GuidanceOptions(**options))
  denoise = make_denoiser(network, process, CONDITION, guidance=guidance, **settings)
  x_t, t = jnp.full(COND.shape, 0.3), jnp.float32(t)
  found, (alpha, sigma) = denoise(x_t, t), process.schedule(t)
  np.testing.assert_allclose(found.eps, (x_t - alpha * found.x0) / sigma, rtol=1e-4, atol=1e-4)
  return np.asarray(found.x0, np.float64)


def projected(cond, uncond, scale, parallel=1.0, norm_threshold=0.0, momentum=0.0, before=0.0):
  """One example by Sadat et al. 2025, from a basis of which the labelled x0 is one direction."""
  difference = (cond - uncond + momentum * before).ravel()
  kept, length = difference.reshape(cond.shape), np.linalg.norm(difference)
  if norm_threshold and length > norm_threshold:
    difference = difference * (norm_threshold / length)
  unit = cond.ravel() / np.linalg.norm(cond)
  orthogonal = difference - np.dot(difference, unit) * unit
  update = orthogonal + parallel * (difference - orthogonal)
  return cond + (scale - 1) * update.reshape(cond.shape), kept


def by_hand(scale, rescale=0.0, threshold=0.0, clip=False, **projection):
  """Each example alone, in float64, from the papers."""
  made = []
  for cond, uncond in zip(COND, UNCOND):
    x0 = projected(cond, uncond, scale, **projection)[0]
    x0 = rescale * x0 * (cond.std() / x0.std()) + (1 - rescale) * x0
    if threshold:
      ordered = np.sort(np.abs(x0).ravel())
      place = threshold * (len(ordered) - 1)
      low = int(place)
      high = min(low + 1, len(ordered) - 1)
      s = max(1, ordered[low] + (place - low) * (ordered[high] - ordered[low]))
      x0 = np.clip(x0, -s, s) / s
    elif clip:
      x0 = np.clip(x0, -1, 1)
    made.append(x0)
  return np.stack(made)


@pytest.mark.parametrize('share', [0.3, 1.0])
def test_rescaling_gives_back_the_deviation_of_the_labelled_prediction(share):
  found = found_x0(4.0, rescale=share)
  np.testing.assert_allclose(found, by_hand(4.0, rescale=share), rtol=1e-4, atol=1e-4)
  assert np.abs(found - by_hand(4.0)).max() > 0.5
  if share == 1:
    np.testing.assert_allclose(found.std((1, 2, 3)), COND.std((1, 2, 3)), rtol=1e-4)
  some = found_x0(4.0, rescale=share, guide_channels=1)  # Of the guided channels.
  np.testing.assert_allclose(some[..., 1], COND[..., 1], rtol=1e-5)
  first = UNCOND[..., 0] + 4 * (COND[..., 0] - UNCOND[..., 0])
  factor = COND[..., 0].std((1, 2)) / first.std((1, 2))
  expected = first * (share * factor + 1 - share)[:, None, None]
  np.testing.assert_allclose(some[..., 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'options',
  [
    dict(parallel=0.0),
    dict(parallel=0.3),
    dict(norm_threshold=2.0),
    dict(norm_threshold=1e4),
    dict(parallel=0.0, norm_threshold=5.0),
    dict(parallel=0.2, norm_threshold=3.0, rescale=0.7, threshold=0.9),
  ],
)
def test_projected_guidance_is_that_of_its_paper(options):
  found = found_x0(4.0, **options)
  np.testing.assert_allclose(found, by_hand(4.0, **options), rtol=1e-4, atol=1e-4)
  if options == dict(norm_threshold=1e4):
    np.testing.assert_allclose(found, by_hand(4.0), rtol=1e-4, atol=1e-4)
  else:
    assert np.abs(found - by_hand(4.0)).max() > 0.1
  if options == dict(parallel=0.0):
    np.testing.assert_allclose(np.sum((found - COND) * COND, (1, 2, 3)), 0, atol=1e-3)


@pytest.mark.parametrize('interval', [(), (0.4, 3.0)])
def test_momentum_remembers_the_steps_before_that_were_guided(interval):
  """DDIM by hand in float64; the programs take the steps in two runs."""
  options = dict(momentum=-0.6, norm_threshold=1.5, parallel=0.2)
  made, index = (
    generator(num_steps=8, interval=interval, **options),
    jnp.arange(3, dtype=jnp.uint32),
  )

  @jax.jit
  def advance(state, steps, arguments):
    return made.advance(linear, index, LABELS, state, steps, arguments)

  start = made.start(made.noise(index, made.arguments.seed))
  state = start
  for steps in made.steps.cut(4):
    state = advance(state, steps, made.arguments)

  x_t, memory = np.asarray(start.x_t, np.float64), np.zeros((3, 2, 2, 1))
  for t, s in itertools.pairwise(made.times):
    (a_t, s_t), (a_s, s_s) = (map(float, made.process.schedule(jnp.float32(x))) for x in (t, s))
    time = float(made.process.schedule.network_time(jnp.float32(t)))
    x0 = np.zeros_like(x_t)
    for row, label in enumerate((0, 4, 7)):
      cond, uncond = (
        (a_t * x_t[row] - s_t * (x_t[row] / 10 + np.sin(y) + time / 1000)) / (a_t**2 + s_t**2)
        for y in (label, 10)
      )
      x0[row] = cond
      if not interval or interval[0] < s_t / a_t <= interval[1]:
        x0[row], memory[row] = projected(cond, uncond, 2.5, before=memory[row], **options)
    x_t = a_s * x0 + s_s * (x_t - a_t * x0) / s_t
  np.testing.assert_allclose(state.x_t, x_t, rtol=1e-3, atol=1e-3)
  without = sampled(num_steps=8, interval=interval, **{**options, 'momentum': 0.0})
  assert np.abs(without - x_t).max() > 0.02


def test_momentum_needs_a_memory():
  guidance = guidance_of(2.0, GuidanceOptions(momentum=-0.5))
  options = dict(null_label=10, guidance=guidance, clip_x0=False)
  with pytest.raises(ValueError, match=r'momentum: got -0\.5, allowed none'):
    make_denoiser(linear, Process(build('cosine'), 'v'), CONDITION, **options)
  assert guidance_of(1.0, GuidanceOptions(momentum=-0.5)).momentum is None


@pytest.mark.parametrize('scale', [1.0, 3.0])
@pytest.mark.parametrize('quantile', [0.5, 0.9, 1.0])
def test_dynamic_thresholding_divides_by_the_quantile_and_replaces_clipping(scale, quantile):
  for clip_x0 in (False, True):
    found = found_x0(scale, clip_x0, threshold=quantile)
    np.testing.assert_allclose(found, by_hand(scale, threshold=quantile), rtol=1e-4, atol=1e-5)
    assert np.abs(found).max() <= 1
  assert np.abs(found - by_hand(scale, clip=True)).max() > 0.1


def test_what_is_small_is_not_thresholded(monkeypatch):
  monkeypatch.setattr(f'{__name__}.COND', COND / 20)
  np.testing.assert_allclose(found_x0(1.0, threshold=0.9), COND, rtol=1e-5)


@pytest.mark.parametrize('prediction', ['x0', 'v'])
def test_methods_follow_each_other_inside_the_interval(prediction):
  """Guide, rescale, threshold; without guidance outside the threshold alone."""
  options = dict(rescale=0.7, threshold=0.9)
  inside = found_x0(4.0, interval=(0.5, 2.0), prediction=prediction, **options)
  everywhere = found_x0(4.0, prediction=prediction, **options)
  np.testing.assert_allclose(inside, everywhere, rtol=1e-5, atol=1e-6)
  outside = found_x0(4.0, interval=(0.5, 2.0), prediction=prediction, t=0.8, **options)
  unguided = found_x0(1.0, prediction=prediction, t=0.8, threshold=0.9)
  np.testing.assert_allclose(outside, unguided, rtol=1e-5, atol=1e-6)
  if prediction == 'x0':
    expected = by_hand(4.0, rescale=0.7, threshold=0.9)
    np.testing.assert_allclose(inside, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'field, value',
  [
    *(('interval', (2, 1)), ('interval', (1.0,)), ('rescale', 1.5), ('threshold', -0.1)),
    *(('momentum', -1.0), ('parallel', -0.5), ('norm_threshold', -1.0)),
  ],
)
def test_options_that_mean_nothing_are_refused(field, value):
  options = {**{name: f.default for name, f in options_of(GuidanceOptions).items()}, field: value}
  with pytest.raises(ValueError, match=f'{field}: got '):
    require_options(GuidanceOptions(**options))
