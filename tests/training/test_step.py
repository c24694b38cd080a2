"""The training step: compiled once, reproducible, safe against non-finite losses."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import DivergedError
from diffusion_jax.models.latents import Scaling
from diffusion_jax.objectives.base import gradients_of, x0_of
from diffusion_jax.objectives.denoising import network_of
from diffusion_jax.runtime.interruption import Interruption
from diffusion_jax.runtime.watchdog import Watchdog
from diffusion_jax.training.loop import Action, run_loop
from diffusion_jax.training.state import create_state, ema_decay_at
from diffusion_jax.training.step import draws_of, make_train_step


def batch_of(experiment, step=0, size=16):
  return experiment.train_data.read(np.arange(step * size, (step + 1) * size))


def step_of(experiment, objective=None, seed=0):
  """(state, batch) -> (state, metrics), of the experiment's objective or another."""
  step = make_train_step(objective or experiment.objective, seed)
  return lambda state, batch: step(state, batch, {})


def holdout_of(objective, parts, batch):
  """The sum of the held-out losses, and their number."""
  sums = objective.holdout(parts, {}, None, batch)
  return sums['loss'], sums['count']


@pytest.fixture
def experiment(tiny):
  return tiny()


@pytest.mark.unoptimised
@pytest.mark.parametrize('name', ['dit', pytest.param('unet', marks=pytest.mark.slow)])
def test_one_trace_for_many_steps_and_held_out_loss_falls(tiny, name):
  experiment, traces = tiny(**{'model.name': name, 'train.num_steps': 60}), []
  train_step = step_of(experiment)

  def counted(state, batch):
    traces.append(1)
    return train_step(state, batch)

  held_out = {**experiment.holdout_data.read(np.arange(200)), 'index': np.arange(200)}
  measure = jax.jit(lambda parts: holdout_of(experiment.objective, parts, held_out)[0] / 200)
  step, state = jax.jit(counted, donate_argnums=0), jax.jit(experiment.init_state)()
  before = float(measure(state.params))
  for i in range(60):
    state, _ = step(state, batch_of(experiment, i))
  assert len(traces) == 1 and int(state.step) == 60 and int(state.skipped) == 0
  assert float(measure(state.params)) < 0.8 * before


def test_the_same_step_twice_is_bit_identical(experiment):
  step = jax.jit(step_of(experiment))
  first, _ = step(jax.jit(experiment.init_state)(), batch_of(experiment))
  second, _ = step(jax.jit(experiment.init_state)(), batch_of(experiment))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_draws_change_with_step_and_seed_and_position(tiny):
  experiment = tiny()

  def loss(experiment, state):
    step = jax.jit(step_of(experiment, seed=experiment.config.seed))
    return float(step(state, batch_of(experiment))[1]['loss'])

  state = jax.jit(experiment.init_state)()
  base = loss(experiment, state)
  assert loss(experiment, state.replace(step=jnp.int32(1))) != base
  other = tiny(seed=1)
  assert loss(other, state) != base


def test_update_is_clipped_adamw_and_the_average_follows(experiment):
  step, state = jax.jit(step_of(experiment)), jax.jit(experiment.init_state)()
  batch = batch_of(experiment)
  after, metrics = step(state, batch)
  mu = after.opt_states['model'][1][
    0
  ].mu  # Adam's first moment is (1 - b1) times the clipped gradient.
  clipped = jax.tree.map(lambda m: m / (1 - 0.9), mu)
  norm = float(optax.tree.norm(clipped))
  assert norm == pytest.approx(min(float(metrics['grad_norm']), 1.0), rel=1e-4)
  # Adam's first step is the rate times the sign of the gradient; half the rate in a warm-up of 2.
  moved = jax.tree.map(lambda new, old: jnp.abs(new - old).max(), after.params, state.params)
  assert float(max(jax.tree.leaves(moved))) == pytest.approx(2e-3 / 2, rel=1e-2)
  third, _ = step(after, batch)
  decay = float(ema_decay_at(jnp.int32(1), 0.995))
  assert decay == pytest.approx(2 / 11)
  before, average = after.averages['ema'], third.averages['ema']
  expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, before, third.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), average, expected)


def test_a_non_finite_loss_changes_nothing_but_the_counters(experiment):
  step, state = jax.jit(step_of(experiment)), jax.jit(experiment.init_state)()
  broken = state.replace(params=jax.tree.map(lambda p: np.full_like(p, np.nan), state.params))
  after, metrics = step(broken, batch_of(experiment))
  assert int(after.skipped) == int(metrics['skipped']) == 1 and int(after.step) == 1
  assert_same(after, state, ('averages', 'opt_states'))
  healthy, _ = step(after.replace(params=state.params), batch_of(experiment))
  assert int(healthy.skipped) == 0


def test_a_step_to_parameters_that_are_not_finite_changes_nothing(experiment):
  """As with weight_decay=inf: loss and gradient are finite."""
  step, state, _ = recorded(experiment, optimizers={'model': optax.sgd(jnp.inf)})
  after, metrics = step(state, batch_of(experiment))
  assert np.isfinite(metrics['loss']) and np.isfinite(metrics['grad_norm'])
  assert int(after.skipped) == 1
  assert_same(after, state, ('params', 'averages'))


def test_a_finite_loss_with_a_non_finite_gradient_changes_nothing(experiment):
  """The root of 0 is 0, its derivative infinite."""

  def root(network, x0, condition):
    return jnp.sqrt(0 * jnp.square(network(x0, jnp.zeros(len(x0)), condition)).mean((1, 2, 3)))

  step, state, _ = recorded(experiment, loss=root)
  state = state.replace(step=jnp.int32(10))  # After the warm-up.
  after, metrics = step(state, batch_of(experiment))
  assert metrics['loss'] == 0 and not np.isfinite(metrics['grad_norm']) and int(after.skipped) == 1
  assert_same(after, state, ('params', 'averages', 'opt_states'))


def test_a_gradient_whose_norm_overflows_changes_nothing(experiment):
  """Clipping divides by the infinite norm, so the update alone would not show it."""

  def huge(network, x0, condition):
    return 1e25 * network(jnp.ones_like(x0), jnp.zeros(len(x0)), condition).mean((1, 2, 3))

  step, state, _ = recorded(experiment, loss=huge)
  state = state.replace(step=jnp.int32(10))
  after, metrics = step(state, batch_of(experiment))
  assert np.isfinite(metrics['loss']) and metrics['grad_norm'] == np.inf and int(after.skipped) == 1
  assert_same(after, state, ('params', 'averages', 'opt_states'))


class Recorder:
  """Stands for a backbone of one parameter, and notes how it is called."""

  def __init__(self):
    self.calls = []

  def apply(self, variables, x, time, condition, *, train, rngs, mutable):
    self.calls.append({'labels': np.asarray(condition['label']), 'train': train, 'rngs': rngs})
    return variables['params']['kernel'] * x

  @property
  def dropout_keys(self):
    return [tuple(jax.random.key_data(call['rngs']['dropout']).tolist()) for call in self.calls]


def recorded(experiment, seed=0, loss=None, **changes):
  """The step of an experiment around a Recorder, its state, and the Recorder.

  loss: another one, (network, x0, condition) -> (B,). changes: of the objective.
  """
  module = Recorder()
  context = dataclasses.replace(experiment.context(jnp.float32), make_model=lambda: module)
  objective = experiment.config.objective.build(context=context)
  if loss:

    def losses(parts, state, frozen, batch, draws):
      x0 = x0_of(batch, None, draws.keys, flip=False)
      return loss(network_of(module, parts['model']), x0, {'label': batch['label']}), {}

    changes['gradients'] = gradients_of(losses)
  params = {'model': {'kernel': jnp.ones(())}}
  module.objective = dataclasses.replace(objective, **changes)
  state = create_state(params, module.objective.optimizers)
  return step_of(experiment, module.objective, seed), state, module


def assert_same(found, expected, names):
  for name in names:
    jax.tree.map(np.testing.assert_array_equal, getattr(found, name), getattr(expected, name))


def test_training_hides_labels_and_drops_out_with_a_key_a_step(tiny):
  """At the shipped class_dropout of 0.1, each label for itself."""
  experiment = tiny()
  batch = batch_of(experiment, size=1200)
  step, state, module = recorded(experiment)
  for _ in range(2):
    state, _ = step(state, batch)
  hidden = [call['labels'] != batch['label'] for call in module.calls]
  deviation = np.sqrt(1200 * 0.1 * 0.9)
  for call, is_hidden in zip(module.calls, hidden):
    assert call['train'] and abs(is_hidden.sum() - 120) < 4 * deviation
    np.testing.assert_array_equal(call['labels'][is_hidden], 10)
  assert np.any(hidden[0] != hidden[1])
  other, state, again = recorded(experiment, seed=1)
  other(state, batch)
  assert len({*module.dropout_keys, *again.dropout_keys}) == 3


def test_held_out_loss_is_that_of_the_plain_objective(tiny):
  """Neither dropout nor hidden labels nor weights, which training has."""
  losses = {}
  for weighting in ('none', 'min_snr'):
    experiment = tiny(**{'objective.denoising.weighting': weighting})
    batch = {**batch_of(experiment, size=200), 'index': np.arange(200)}
    step, state, module = recorded(experiment)
    held_out, count = holdout_of(module.objective, state.params, batch)
    assert not module.calls[0]['train'] and not module.calls[0]['rngs'] and count == 200
    np.testing.assert_array_equal(module.calls[0]['labels'], batch['label'])
    losses[weighting] = (float(held_out), float(step(state, batch)[1]['loss']))
  assert losses['none'][0] == losses['min_snr'][0] and losses['none'][1] != losses['min_snr'][1]


def test_padding_does_not_count_in_the_held_out_loss(experiment):
  batch = {**batch_of(experiment, size=6), 'index': np.arange(6)}
  padded = {name: np.concatenate([rows, rows[:2]]) for name, rows in batch.items()}
  padded['index'][6:] = -1
  _, state, module = recorded(experiment)
  expected, _ = holdout_of(module.objective, state.params, batch)
  found, count = holdout_of(module.objective, state.params, padded)
  assert count == 6 and float(found) == pytest.approx(float(expected), rel=1e-6)


def test_latents_are_samples_of_the_posterior(experiment):
  """Of N(mean, std^2) with mean 3 and std 2, shifted and scaled to N(1, 1)."""
  parameters = np.full((500, 4, 4, 2), [3.0, np.log(4.0)], np.float16)
  keys = jax.random.split(jax.random.key(0), 500)
  scaling = Scaling(jnp.float32([1.0]), jnp.float32(0.5))
  x0 = x0_of({'posterior': parameters}, scaling, keys, flip=False)
  assert x0.shape == (500, 4, 4, 1)
  np.testing.assert_allclose([x0.mean(), x0.std()], 1, atol=0.05)  # 8,000 draws: 4 errors of 0.011.


def test_the_average_reaches_the_configured_decay(tiny):
  """0.9999, as shipped: late in training the average takes a ten-thousandth of the parameters."""
  step, state, _ = recorded(tiny(**{'train.ema_decay': 0.9999}))
  zero = {'ema': {'model': {'kernel': jnp.zeros(())}}}
  state = state.replace(step=jnp.int32(10**6), averages=zero)
  after, _ = step(
    state, {'image': np.zeros((2, 8, 8, 1), np.uint8), 'label': np.zeros(2, np.int32)}
  )
  average, params = after.averages['ema']['model'], after.params['model']
  np.testing.assert_allclose(average['kernel'] / params['kernel'], 1e-4, rtol=1e-3)
  found = [float(ema_decay_at(jnp.int32(step), 0.9999)) for step in (0, 90, 10**6)]
  assert found == pytest.approx([0.1, 0.91, 0.9999], abs=1e-7)


def test_flip_mirrors_about_half_of_the_images(experiment):
  batch = batch_of(experiment, size=64)
  keys = draws_of(0, jnp.int32(0), 64).keys
  seen = {'x0': np.asarray(x0_of(batch, None, keys, flip=True))}
  original = batch['image'] / 127.5 - 1
  same = np.all(np.abs(seen['x0'] - original) < 1e-5, axis=(1, 2, 3))
  mirrored = np.all(np.abs(seen['x0'] - original[:, :, ::-1]) < 1e-5, axis=(1, 2, 3))
  assert np.all(same | mirrored) and 16 < same.sum() < 48


def loop(train_step, stop, write, actions=(), max_skipped=3, start=0, **options):
  state = create_state({'model': {'kernel': jnp.zeros(())}}, {'model': optax.identity()})
  return run_loop(
    train_step,
    state,
    ((1, number) for number in range(start, stop)),
    start=start,
    stop=stop,
    batch_size=4,
    learning_rate=lambda step: 0.5 * step,
    write=write,
    actions=actions,
    max_skipped=max_skipped,
    interruption=Interruption(),
    save=None,
    note_skipped=lambda step, values: None,
    **{'log_every_steps': 5, 'watchdog': Watchdog(0, Path()), **options},
  )


class Noted:
  """A watchdog that notes how long each action may take."""

  def __init__(self):
    self.allowed = []

  def beat(self):
    pass

  def paused(self):
    return self.allowing(None)

  def allowing(self, more):
    self.allowed.append(more)
    return contextlib.nullcontext()


def test_an_action_may_take_any_time_once_then_ten_times_the_longest(monkeypatch):
  clock, watchdog = [0.0], Noted()
  monkeypatch.setattr('diffusion_jax.training.loop.time.perf_counter', lambda: clock[0])
  seconds = iter([4.0, 1.0, 6.0, 1.0])

  def act(step, state):
    clock[0] += next(seconds)

  def train_step(number, state, batch, count):
    clock[0] += 1
    return state, {'loss': 1.0, 'skipped': 0}

  loop(train_step, 4, lambda *line: None, [Action(1, act)], watchdog=watchdog)
  assert watchdog.allowed == [None, 40.0, 40.0, 60.0]


class Unread:
  """Stands for a device array, and notes after which step the host reads it."""

  def __init__(self, step, reads, now):
    self.step, self.reads, self.now = step, reads, now

  def __float__(self):
    self.reads.append((self.step, self.now[0]))
    return float(self.step)


def test_metrics_are_read_only_when_logged_and_one_step_late(monkeypatch):
  reads, now, written = [], [0], []
  monkeypatch.setattr(jax, 'device_get', lambda tree: jax.tree.map(float, tree))

  def train_step(number, state, batch, count):
    now[0] += 1
    value = Unread(now[0], reads, now)
    return state, {'loss': value, 'grad_norm': value, 'skipped': 0}

  loop(train_step, 12, lambda step, values: written.append((step, values['loss'])))
  assert written == [(5, 3.0), (10, 8.0), (12, 11.5)]  # Means since the last log.
  assert {at for step, at in reads if step <= 5} == {6}  # After step 6 was handed over.
  assert {at for step, at in reads if 5 < step <= 10} == {11}


def test_a_line_says_how_many_steps_it_averages_if_they_are_fewer():
  """As after a resume between two lines, and at the end."""
  written = []
  loop(
    lambda number, state, batch, count: (state, {'loss': float(number), 'skipped': 0}),
    17,
    lambda step, values: written.append((step, values['loss'], values.get('averaged_steps'))),
    start=7,
  )
  assert written == [(10, 9.0, 3), (15, 13.0, None), (17, 16.5, 2)]


def test_no_transfer_to_the_host_between_logs(experiment):
  """JAX itself refuses any implicit transfer while the real step runs."""
  step = jax.jit(step_of(experiment))
  state = jax.block_until_ready(jax.jit(experiment.init_state)())
  batches = [jax.device_put(batch_of(experiment, i)) for i in range(3)]
  state, _ = step(state, batches[0])
  with jax.transfer_guard('disallow'):
    for batch in batches:
      state, metrics = step(state, batch)
  assert np.isfinite(float(metrics['loss']))


def test_actions_run_when_due_and_at_the_end():
  ran = []
  good = {'loss': 1.0, 'grad_norm': 1.0, 'skipped': 0}
  outcome = loop(
    lambda number, state, batch, count: (state, good),
    7,
    lambda *_: None,
    actions=[Action(3, lambda step, state: ran.append(step))],
  )
  assert ran == [3, 6, 7] and outcome.step == 7


def test_too_many_skipped_steps_end_the_run():
  skipped = [0]

  def train_step(number, state, batch, count):
    skipped[0] += 1
    return state, {'loss': np.nan, 'grad_norm': np.nan, 'skipped': skipped[0]}

  with pytest.raises(DivergedError, match='in 5 steps in a row, up to step 5'):
    loop(train_step, 20, lambda *_: None)


def test_the_log_has_learning_rate_step_time_and_the_wait_for_data(monkeypatch):
  """Two steps of 3 s, of which 1 s is the wait for the batch: by a clock that the test moves."""
  clock, written = [100.0], []
  monkeypatch.setattr('diffusion_jax.training.loop.time.perf_counter', lambda: clock[0])

  def batches():
    for number in range(2):
      clock[0] += 1
      yield 1, number

  def train_step(number, state, batch, count):
    clock[0] += 2
    return state, {'loss': 1.0, 'skipped': 0}

  state = create_state({'model': {'kernel': jnp.zeros(())}}, {'model': optax.identity()})
  run_loop(
    train_step,
    state,
    batches(),
    start=0,
    stop=2,
    batch_size=6,
    log_every_steps=2,
    learning_rate=lambda step: 0.1 * (step + 1),
    write=lambda step, values: written.append((step, values)),
    actions=(),
    max_skipped=3,
    interruption=Interruption(),
    save=None,
    watchdog=Watchdog(0, Path()),
    note_skipped=lambda step, values: None,
  )
  ((step, values),) = written
  assert step == 2 and values['step_time'] == pytest.approx(3)
  assert values['images_per_s'] == pytest.approx(2) and values['data_wait'] == pytest.approx(1 / 3)
  assert values['learning_rate'] == pytest.approx(0.2)  # Of the second step.
