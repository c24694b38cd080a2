"""The training step: compiled once, reproducible, safe against non-finite losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.errors import DivergedError
from diffusion_jax.runtime.interruption import Interruption
from diffusion_jax.training.loop import Action, run_loop
from diffusion_jax.training.optimizer import is_decayed, learning_rate_schedule
from diffusion_jax.training.state import create_state, ema_decay_at


def batch_of(experiment, step=0, size=16):
  return experiment.train_data.read(np.arange(step * size, (step + 1) * size))


@pytest.fixture
def experiment(tiny):
  return tiny()


@pytest.mark.parametrize('name', ['dit', 'unet'])
def test_one_trace_for_many_steps_and_held_out_loss_falls(tiny, name):
  experiment, traces = tiny(**{'model.name': name, 'train.num_steps': 60}), []
  trainer = experiment.trainer

  def counted(state, batch):
    traces.append(1)
    return trainer.train_step(state, batch)

  held_out = {**experiment.holdout_data.read(np.arange(200)), 'index': np.arange(200)}
  measure = jax.jit(lambda params: trainer.evaluation_step(params, None, held_out)[0] / 200)
  step, state = jax.jit(counted, donate_argnums=0), experiment.init_state()
  before = float(measure(state.params))
  for i in range(60):
    state, _ = step(state, batch_of(experiment, i))
  assert len(traces) == 1 and int(state.step) == 60 and int(state.skipped) == 0
  assert float(measure(state.params)) < 0.8 * before


def test_the_same_step_twice_is_bit_identical(experiment):
  step = jax.jit(experiment.trainer.train_step)
  first, _ = step(experiment.init_state(), batch_of(experiment))
  second, _ = step(experiment.init_state(), batch_of(experiment))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_draws_change_with_step_and_seed_and_position(tiny):
  experiment = tiny()

  def loss(experiment, state):
    return float(experiment.trainer.train_step(state, batch_of(experiment))[1]['loss'])

  state = experiment.init_state()
  base = loss(experiment, state)
  assert loss(experiment, state.replace(step=jnp.int32(1))) != base
  other = tiny(seed=1)
  assert loss(other, state) != base


def test_update_is_clipped_adamw_and_the_average_follows(experiment):
  trainer, state, batch = experiment.trainer, experiment.init_state(), batch_of(experiment)
  after, metrics = trainer.train_step(state, batch)
  mu = after.opt_state[1][0].mu  # Adam's first moment is (1 - b1) times the clipped gradient.
  clipped = jax.tree.map(lambda m: m / (1 - 0.9), mu)
  norm = float(optax.global_norm(clipped))
  assert norm == pytest.approx(min(float(metrics['grad_norm']), 1.0), rel=1e-4)
  # At step 0 of warm-up the rate is 0: parameters stay; EMA of equal values stays.
  jax.tree.map(np.testing.assert_array_equal, after.params, state.params)
  third, _ = trainer.train_step(after, batch)
  decay = float(ema_decay_at(jnp.int32(1), 0.995))
  assert decay == pytest.approx(2 / 11)
  expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, after.ema_params, third.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), third.ema_params, expected)


def test_a_non_finite_loss_changes_nothing_but_the_counters(experiment):
  trainer, state = experiment.trainer, experiment.init_state()
  broken = state.replace(params=jax.tree.map(lambda p: p.at[...].set(jnp.nan), state.params))
  after, metrics = jax.jit(trainer.train_step)(broken, batch_of(experiment))
  assert int(after.skipped) == int(metrics['skipped']) == 1 and int(after.step) == 1
  jax.tree.map(np.testing.assert_array_equal, after.ema_params, state.ema_params)
  jax.tree.map(np.testing.assert_array_equal, after.opt_state, state.opt_state)
  healthy, _ = trainer.train_step(after.replace(params=state.params), batch_of(experiment))
  assert int(healthy.skipped) == 0


def test_flip_mirrors_about_half_of_the_images(experiment):
  batch, seen = batch_of(experiment, size=64), {}

  def spy(network, x0, labels, keys, train):
    seen['x0'] = x0
    return jnp.zeros(len(x0))

  trainer = dataclasses.replace(experiment.trainer, loss=spy, flip=True)
  trainer.train_step(experiment.init_state(), batch)
  original = batch['image'] / 127.5 - 1
  same = np.all(np.abs(seen['x0'] - original) < 1e-5, axis=(1, 2, 3))
  mirrored = np.all(np.abs(seen['x0'] - original[:, :, ::-1]) < 1e-5, axis=(1, 2, 3))
  assert np.all(same | mirrored) and 16 < same.sum() < 48


def test_learning_rate_warms_up_and_decays():
  rate = learning_rate_schedule(2.0, 10, 110, 'cosine')
  assert [float(rate(s)) for s in (0, 5, 10, 60, 110)] == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)
  flat = learning_rate_schedule(2.0, 0, 100, 'constant')
  assert float(flat(0)) == float(flat(99)) == 2.0


def test_weight_decay_spares_biases_and_norms(experiment):
  params = experiment.init_state().params
  decayed = is_decayed(params)
  assert decayed['blocks']['qkv']['kernel'] and decayed['condition']['label']['embedding']
  assert not decayed['blocks']['qkv']['bias']


def loop(train_step, stop, write, actions=(), max_skipped=3, **options):
  state = create_state({'kernel': jnp.zeros(())}, optax.identity())
  return run_loop(
    train_step,
    state,
    iter(range(stop)),
    start=0,
    stop=stop,
    batch_size=4,
    write=write,
    actions=actions,
    max_skipped=max_skipped,
    interruption=Interruption(),
    **{'log_every_steps': 5, **options},
  )


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

  def train_step(number, state, batch):
    now[0] += 1
    value = Unread(now[0], reads, now)
    return state, {'loss': value, 'grad_norm': value, 'skipped': 0}

  loop(train_step, 12, lambda step, values: written.append((step, values['loss'])))
  assert written == [(5, 3.0), (10, 8.0), (12, 11.5)]  # Means since the last log.
  assert {at for step, at in reads if step <= 5} == {6}  # After step 6 was handed over.
  assert {at for step, at in reads if 5 < step <= 10} == {11}


def test_no_transfer_to_the_host_between_logs(experiment):
  """JAX itself refuses any implicit transfer while the real step runs."""
  step = jax.jit(experiment.trainer.train_step)
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
    lambda number, state, batch: (state, good),
    7,
    lambda *_: None,
    actions=[Action(3, lambda step, state: ran.append(step))],
  )
  assert ran == [3, 6, 7] and outcome.step == 7


def test_too_many_skipped_steps_end_the_run():
  skipped = [0]

  def train_step(number, state, batch):
    skipped[0] += 1
    return state, {'loss': np.nan, 'grad_norm': np.nan, 'skipped': skipped[0]}

  with pytest.raises(DivergedError, match='in 5 steps in a row, up to step 5'):
    loop(train_step, 20, lambda *_: None)
