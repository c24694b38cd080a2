"""Several steps in one program give what they give one by one."""

import itertools
import json

import jax
import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.data.pipeline import train_batches
from diffusion_jax.errors import InputError
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import mesh
from diffusion_jax.training import dispatch
from diffusion_jax.training.dispatch import counts, grouped
from tests.conftest import tiny_mapping

EVERY = (
  *('train.log_every_steps', 'train.holdout_every_steps', 'train.preview_every_steps'),
  'checkpoint.every_steps',
)


def test_groups_begin_at_multiples_and_hold_every_batch_once():
  batches = ({'label': np.full(2, step)} for step in range(5, 18))
  found = list(grouped(batches, 5, 4))
  assert [count for count, _ in found] == [1, 1, 1, 4, 4, 1, 1]
  assert found[3][1]['label'].shape == (4, 2)
  rows = np.concatenate([batch['label'].reshape(-1, 2) for _, batch in found])
  np.testing.assert_array_equal(rows[:, 0], range(5, 18))


def test_what_is_compiled_is_what_comes():
  for start, stop, several in itertools.product(range(9), range(9), (1, 2, 3, 4)):
    if start < stop:
      batches = ({'label': np.zeros(2)} for _ in range(start, stop))
      came = {count for count, _ in grouped(batches, start, several)}
      assert came <= set(counts(start, stop, several)), (start, stop, several)
      assert several == 1 or start % several or stop % several or came == {several}


@pytest.mark.slow
@pytest.mark.unoptimised
@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('resident', [False, True])
def test_the_same_states_and_metrics(tiny, monkeypatch, backend, resident):
  """Unrolled, and in a loop as on accelerators."""
  monkeypatch.setattr(dispatch.jax, 'default_backend', lambda: backend)
  ends = []
  for several in (1, 3):
    changes = {'data.device_resident': resident, 'data.flip': True}
    every = dict.fromkeys(EVERY, 3)
    experiment = tiny(
      **changes, **every, **{'train.num_steps': 6, 'train.steps_per_dispatch': several}
    )
    step, state, losses = experiment.compile_steps(0, several), experiment.initial_state(), []
    batches = train_batches(experiment.step_input, seed=0, batch_size=16, start_step=0, stop_step=6)
    done, one = 0, mesh.batch_sharding(experiment.mesh)
    for count, batch in grouped(batches, 0, several):
      done += count
      cut = one if count == 1 else mesh.stacked_sharding(experiment.mesh)
      state, metrics = step(done, state, mesh.to_devices(batch, cut), count)
      losses += np.ravel(metrics['loss']).tolist()
    ends.append((losses, jax.device_get(state.params)))
  assert len(ends[1][0]) == 6
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), *ends)


@pytest.mark.slow
def test_training_by_dispatches_writes_the_same_log(tmp_path, digits):
  lines = []
  for several in (1, 2):
    every = dict.fromkeys(EVERY, 4)
    changes = {**every, 'train.num_steps': 7, 'train.steps_per_dispatch': several}
    folder = tmp_path / str(several)
    run_mode('train', tiny_mapping(tmp_path, **changes), {}, folder)
    written = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    lines.append({(line['step'], name): line[name] for line in written for name in line})
  assert lines[0].keys() == lines[1].keys()
  for key, value in lines[0].items():
    if key[1] in ('loss', 'grad_norm', 'holdout_loss', 'learning_rate', 'skipped'):
      assert lines[1][key] == pytest.approx(value, rel=1e-4), key


def test_what_falls_between_steps_falls_between_dispatches(tmp_path):
  changes = dict.fromkeys(EVERY, 6)
  create(tiny_mapping(tmp_path, **changes, **{'train.steps_per_dispatch': 3}))
  for name in EVERY:
    with pytest.raises(
      InputError, match=rf'steps_per_dispatch: got 3.*config\.{name} 7.*nearest 1'
    ):
      create(tiny_mapping(tmp_path, **{**changes, name: 7, 'train.steps_per_dispatch': 3}))
  phases = {'objective.name': 'autoencoder', 'objective.autoencoder.discriminator_layers': 1}
  phases |= {'objective.autoencoder.discriminator_start': 2, 'train.num_steps': 6}
  with pytest.raises(InputError, match='phases'):
    create(tiny_mapping(tmp_path, **changes, **phases, **{'train.steps_per_dispatch': 3}))
