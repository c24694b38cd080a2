"""The stages on tiny models, through the same door as the command line."""

import json
import os
import re
import signal

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.errors import DamagedError, InputError, Interrupted
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.sampling.pictures import picture_indices
from tests.conftest import tiny_mapping
from tests.runtime.test_checkpoint import assert_same, corrupt
from tests.support.samples import load_samples


def run(mode, folder, tmp_path, **changes):
  """Returns the experiment; changes are the flags of the command line."""
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode(mode, mapping, changes, folder, as_json=False)
  return create(mapping)


def state_of(experiment, folder, step=None):
  checkpoints = open_checkpoints(experiment, folder, read_only=True)
  restored = checkpoints.restore(experiment.abstract_state, step)
  checkpoints.close()
  return restored.state


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A trained work directory that the tests below only add to."""
  tmp_path = tmp_path_factory.mktemp('trained')
  run('train', tmp_path / 'run', tmp_path)
  return tmp_path


def test_training_leaves_what_the_readme_says(trained):
  folder = trained / 'run'
  assert json.loads((folder / 'config.json').read_text())['train']['num_steps'] == 4
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'loss' in line] == [2, 4]
  assert all(line['images_per_s'] > 0 for line in lines if 'loss' in line)
  assert [line['step'] for line in lines if 'holdout_loss' in line] == [2, 4]
  assert list((folder / 'logs').glob('events.out.tfevents*'))
  picture = Image.open(folder / 'previews' / 'step_00000004.png')
  assert picture.height > 10 * 48 and picture.width > 2 * 48  # 10 classes, 2 columns, enlarged.


def test_a_save_that_failed_ends_training_at_the_next_step(trained, monkeypatch):
  wait, looks = Checkpoints.wait, []

  def failed(self):
    looks.append(not self._manager.is_saving_in_progress())
    if looks[-1]:
      raise InputError('a checkpoint could not be written')
    wait(self)

  monkeypatch.setattr(Checkpoints, 'wait', failed)
  changes = {'checkpoint.every_steps': 100, 'train.num_steps': 1000}
  with pytest.raises(InputError, match='could not be written'):
    run('train', trained / 'failing', trained, **changes)
  assert looks == [True] and os.listdir(trained / 'failing' / 'checkpoints') == ['100']


def test_trained_already_does_nothing(trained, capsys):
  run('train', trained / 'run', trained)
  assert 'nothing to do' in capsys.readouterr().out


@pytest.mark.unoptimised
@pytest.mark.parametrize(
  ('model', 'batch_size'), [('dit', 128), pytest.param('unet', 16, marks=pytest.mark.slow)]
)
def test_interrupted_equals_uninterrupted_bit_for_bit(
  tmp_path, capsys, monkeypatch, model, batch_size
):
  """A signal after step 3 of 14; 14 steps of 128 cross the end of the first epoch (1,500 images)."""
  changes = {
    'model.name': model,
    'train.num_steps': 14,
    'train.batch_size': batch_size,
    'checkpoint.every_steps': 100,
    'train.holdout_every_steps': 100,
    'train.preview_every_steps': 100,
    'train.log_every_steps': 1,
  }
  experiment = run('train', tmp_path / 'whole', tmp_path, **changes)
  assert 'fresh start' in capsys.readouterr().out

  from diffusion_jax.runtime.logging import JsonLines

  write = JsonLines.write_scalars

  def write_and_interrupt(self, step, scalars):
    write(self, step, scalars)
    if step == 2:  # Read after step 3 was handed over.
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(JsonLines, 'write_scalars', write_and_interrupt)
  with pytest.raises(Interrupted, match='SIGTERM at step 3') as stop:
    run('train', tmp_path / 'parts', tmp_path, **changes)
  assert stop.value.exit_code == 75
  monkeypatch.undo()
  capsys.readouterr()
  run('train', tmp_path / 'parts', tmp_path, **changes)
  assert f'resumed at step 3 from {tmp_path / "parts" / "checkpoints" / "3"}' in (
    capsys.readouterr().out
  )
  whole, parts = (state_of(experiment, tmp_path / name) for name in ('whole', 'parts'))
  assert int(whole.step) == 14
  assert_same(parts, whole)
  logs = [
    [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
    for name in ('whole', 'parts')
  ]
  losses = [[(x['step'], x['loss']) for x in lines if 'loss' in x] for lines in logs]
  assert losses[0] == losses[1] and len(losses[0]) == 14


@pytest.mark.slow
@pytest.mark.unoptimised
def test_a_damaged_checkpoint_is_said_and_passed_over(tmp_path, capsys):
  experiment = run('train', tmp_path / 'run', tmp_path)
  expected = state_of(experiment, tmp_path / 'run', 4)
  corrupt(tmp_path / 'run' / 'checkpoints', 4)
  run('train', tmp_path / 'run', tmp_path)
  out = capsys.readouterr().out
  assert 'checkpoint of step 4 is damaged' in out and 'resumed at step 2' in out
  assert (tmp_path / 'run' / 'checkpoints-damaged' / '4').is_dir()
  assert_same(state_of(experiment, tmp_path / 'run', 4), expected)


def test_sample_set(trained, capsys):
  experiment = run('sample', trained / 'run', trained, **{'sample.name': 'plain'})
  folder = trained / 'run' / 'samples' / 'plain'
  made, labels = load_samples(folder, 20)
  assert made.shape == (20, 8, 8, 1) and made.dtype == np.uint8
  np.testing.assert_array_equal(labels, np.arange(20) % 10)
  assert Image.open(folder / 'grid.png').height > 480
  assert Image.open(folder / 'denoising.gif').n_frames == 3
  meta = json.loads((folder / 'meta.json').read_text())
  assert meta['identity']['step'] == 4 and meta['images_per_s'] > 0 and meta['num_samples'] == 20

  params = state_of(experiment, trained / 'run').averages['ema']  # Against a call of the parts.
  x0, _ = experiment.generator()(
    experiment.objective.network(params), np.arange(20, dtype=np.uint32), labels
  )
  expected = np.clip(np.floor(127.5 * np.asarray(x0) + 128), 0, 255)
  assert np.abs(made - expected).max() <= 1  # float rounding at a level's edge

  capsys.readouterr()
  run('sample', trained / 'run', trained, **{'sample.name': 'plain'})
  assert '0 of 20 samples to make' in capsys.readouterr().out


def test_an_interrupted_or_enlarged_set_is_the_same_as_one_made_at_once(trained):
  flags = {'sample.name': 'parts', 'sample.num_samples': 30, 'sample.grid_columns': 1}
  run('sample', trained / 'run', trained, **flags)
  folder = trained / 'run' / 'samples' / 'parts'
  whole = load_samples(folder, 30)
  parts = sorted(folder.glob('part-*.npz'))
  assert len(parts) == 2
  parts[0].unlink()
  with pytest.raises(InputError, match='15 of 30 samples'):
    load_samples(folder, 30)
  run('sample', trained / 'run', trained, **{**flags, 'sample.num_samples': 33})
  again = load_samples(folder, 33)
  for before, after in zip(whole, again):
    assert np.abs(before.astype(int) - after[:30]).max() <= 1


def test_another_set_under_the_same_name_is_refused(trained):
  run('sample', trained / 'run', trained, **{'sample.name': 'mine'})
  with pytest.raises(InputError, match=r'num_steps: 3, asked 2'):
    run('sample', trained / 'run', trained, **{'sample.name': 'mine', 'sample.num_steps': 2})


def test_labels_of_the_user(trained):
  flags = {'sample.name': 'chosen', 'sample.labels': (7, 2), 'sample.num_samples': 5}
  run('sample', trained / 'run', trained, **flags)
  _, labels = load_samples(trained / 'run' / 'samples' / 'chosen', 5)
  np.testing.assert_array_equal(labels, [7, 2, 7, 2, 7])


def test_best_and_numbered_checkpoints(trained):
  run('sample', trained / 'run', trained, **{'sample.name': 'best', 'sample.checkpoint': 'best'})
  run('sample', trained / 'run', trained, **{'sample.name': 'two', 'sample.checkpoint': '2'})
  steps = [
    json.loads((trained / 'run' / 'samples' / n / 'meta.json').read_text())['identity']['step']
    for n in ('best', 'two')
  ]
  assert steps == [4, 2]
  with pytest.raises(InputError, match=r"got '77', .* has \[2, 4\]"):
    run('sample', trained / 'run', trained, **{'sample.checkpoint': '77'})


def test_a_damaged_part_is_named(trained):
  run('sample', trained / 'run', trained, **{'sample.name': 'torn'})
  path = next((trained / 'run' / 'samples' / 'torn').glob('part-*.npz'))
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(DamagedError, match=path.name):
    run('evaluate', trained / 'run', trained, **{'sample.name': 'torn'})


def test_evaluate_makes_the_samples_and_writes_every_number_with_its_protocol(trained, capsys):
  run('evaluate', trained / 'run', trained, **{'sample.cfg_scale': 2.0})
  out = capsys.readouterr().out
  assert 'holdout accuracy' in out and 'real training images' in out and 'ddim3-cfg2' in out
  result = json.loads((trained / 'run' / 'eval' / 'ddim3-cfg2.json').read_text())
  assert set(result['metrics']) == {
    'frechet_distance',
    'inception_score',
    'inception_score_std',
    'label_accuracy',
  }
  assert result['protocol']['num_samples'] == 20 and result['protocol']['reference_size'] == 297
  assert result['samples']['cfg_scale'] == 2.0 and result['samples']['average'] == 'ema'
  # An untrained model is farther from the data than real images are.
  real = result['real_baseline']['metrics']['frechet_distance']
  assert result['metrics']['frechet_distance'] > real > 0


@pytest.mark.slow
@pytest.mark.unoptimised
def test_the_set_of_the_checkpoint_that_is_asked_for_is_evaluated(tmp_path, capsys):
  flags = {'optimizer.clip_norm': 0.0, 'train.num_steps': 2, 'optimizer.warmup_steps': 1}
  run('train', tmp_path / 'run', tmp_path, **flags)
  run('sample', tmp_path / 'run', tmp_path, **flags)
  longer = {**flags, 'train.num_steps': 3, 'optimizer.clip_norm': 1.0}  # Clipping may be changed.
  run('train', tmp_path / 'run', tmp_path, **longer)
  out = capsys.readouterr().out
  assert 'changed since the checkpoint: config.optimizer.clip_norm' in out
  # A cosine of one step after the warm-up of one ends at 0; of two, it is at its half.
  assert 'learning rate: 0 at step 2 under the 2 steps of the checkpoint, 0.001 under 3' in out
  assert re.search(r'done: 3 steps in .*; loss \d.*, [\d,]+ images/s, 0:\d\d:\d\d in all', out)
  run('evaluate', tmp_path / 'run', tmp_path, **longer, **{'eval.metrics': ('fid',)})
  assert 'evaluating 20 samples of step 3' in capsys.readouterr().out
  run('sample', tmp_path / 'run', tmp_path, **longer)
  assert '0 of 20 samples to make' in capsys.readouterr().out
  run('evaluate', tmp_path / 'run', tmp_path, **longer)  # Beside a result with fewer metrics.
  stored = sorted((tmp_path / 'run' / 'eval').glob('ddim3-cfg1*.json'))
  assert sorted(len(json.loads(path.read_text())['metrics']) for path in stored) == [1, 4]
  capsys.readouterr()
  for asked, step in (('3', 3), ('2', 2)):
    run('evaluate', tmp_path / 'run', tmp_path, **longer, **{'sample.checkpoint': asked})
    assert f'evaluating 20 samples of step {step}' in capsys.readouterr().out
  sets = {path.name for path in (tmp_path / 'run' / 'samples').iterdir()}
  assert sets == {'ddim3-cfg1', 'ddim3-cfg1-step3'}
  before = (tmp_path / 'run' / 'config.json').read_text()
  run('train', tmp_path / 'run', tmp_path, **{**longer, 'optimizer.learning_rate': 5.0})
  assert 'nothing to do' in capsys.readouterr().out
  assert (tmp_path / 'run' / 'config.json').read_text() == before
  with pytest.raises(InputError, match='num_samples: got 1, allowed >= 2'):
    run('evaluate', tmp_path / 'run', tmp_path, **longer, **{'sample.num_samples': 1})


def test_evaluation_with_pixels(trained):
  flags = {'eval.features.name': 'pixels', 'sample.name': 'raw'}
  run('evaluate', trained / 'run', trained, **flags)
  result = json.loads((trained / 'run' / 'eval' / 'raw.json').read_text())
  assert set(result['metrics']) == {'frechet_distance'}


@pytest.mark.slow
@pytest.mark.unoptimised
def test_unconditional_models_train_sample_and_evaluate(tmp_path):
  flags = {'num_classes': 0, 'sampler.name': 'ddpm'}
  run('train', tmp_path / 'run', tmp_path, **flags)
  run('evaluate', tmp_path / 'run', tmp_path, **flags)
  folder = tmp_path / 'run' / 'samples' / 'ddpm3-cfg1'
  assert Image.open(folder / 'grid.png').size[0] > 0
  np.testing.assert_array_equal(load_samples(folder, 20)[1], 0)
  result = json.loads((tmp_path / 'run' / 'eval' / 'ddpm3-cfg1.json').read_text())
  assert 'label_accuracy' not in result['metrics']


@pytest.mark.parametrize('batch_size', [1, 7, 16])
def test_the_grid_has_a_row_a_class_whatever_the_batch(tiny, batch_size):
  experiment = tiny(**{'sample.batch_size': batch_size, 'sample.num_samples': 40})
  found = picture_indices(experiment)
  np.testing.assert_array_equal(found, np.arange(20).reshape(2, 10).T)
  assert picture_indices(experiment, limit=batch_size).size <= batch_size
