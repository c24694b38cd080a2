"""Sample sets: stopped and started, enlarged, counted, animated and exported."""

import json
import re
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from configs import folder as folder_config
from diffusion_jax.command import run_mode
from diffusion_jax.data import adm, image_folder
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import resolve, weights
from diffusion_jax.experiment.checks import create
from diffusion_jax.runtime import files
from diffusion_jax.runtime.checkpoint import Checkpoints
from diffusion_jax.sampling import generation, sample_set, samples
from diffusion_jax.sampling.generation import batches_to_make
from tests.conftest import tiny_mapping
from tests.support.samples import load_samples


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A trained work directory that the tests below only add to."""
  tmp_path = tmp_path_factory.mktemp('sampling')
  run_mode('train', tiny_mapping(tmp_path), {}, tmp_path / 'run', as_json=False)
  return tmp_path


def test_a_set_is_of_the_options_of_its_spacing(tmp_path):
  changes = {'schedule.name': 'variance_exploding', 'sample.spacing': 'karras'}
  found = samples.settings(create(tiny_mapping(tmp_path, **changes)))
  assert {key: found[key] for key in found if key.startswith('spacing')} == {
    'spacing': 'karras',
    'spacing.rho': 7.0,
    'spacing.sigma_min': 0.002,
  }


def test_a_set_is_named_by_its_guidance_and_is_of_it(tmp_path):
  def found(**changes):
    experiment = create(tiny_mapping(tmp_path, **changes))
    return samples.set_name(experiment), samples.settings(experiment)['guidance']

  assert found(**{'sample.cfg_scale': 2.0}) == ('ddim3-cfg2', None)  # As before there were others.
  interval = {'sample.cfg_scale': 2.0, 'sample.guidance.interval': (0.25, 3)}
  assert found(**interval) == ('ddim3-cfg2-interval0.25_3', {'interval': [0.25, 3]})
  more = {**interval, 'sample.guidance.rescale': 0.7, 'sample.guidance.threshold': 0.995}
  assert found(**more)[0] == 'ddim3-cfg2-interval0.25_3-rescale0.7-threshold0.995'
  assert found(**{'sample.name': 'mine', **interval})[0] == 'mine'
  assert found(**{'sample.cache.interval': 3}) == ('ddim3-cfg1-cache3_1_3', None)


def flags_of(name, changes):
  return {'sample.name': name, **{f'sample.{field}': value for field, value in changes.items()}}


def run(trained, name, **changes):
  """Samples; returns the folder of the set."""
  flags = flags_of(name, changes)
  run_mode('sample', tiny_mapping(trained, **flags), flags, trained / 'run', as_json=False)
  return trained / 'run' / 'samples' / name


def experiment_of(trained, name, **changes):
  """As the command line makes it of the work directory."""
  flags = flags_of(name, changes)
  return create(*resolve.trained('sample', trained / 'run', tiny_mapping(trained, **flags), flags))


class Killed(BaseException):
  """As a signal: no code of ours catches it."""


def kill_after(monkeypatch, parts):
  save, saved = sample_set.save_part, []

  def save_or_die(folder, *content):
    if len(saved) == parts:
      raise Killed
    saved.append(folder)
    save(folder, *content)

  monkeypatch.setattr(sample_set, 'save_part', save_or_die)


def no_sampling(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError('a checkpoint was restored')

  monkeypatch.setattr(Checkpoints, 'restore', refuse)


def test_a_batch_is_written_while_the_next_is_made(trained, monkeypatch):
  begun, calls, save = threading.Event(), [], sample_set.save_part
  compile_generate = generation.compile_generate

  def watched(*arguments):
    generate = compile_generate(*arguments)

    def run(*inputs):
      calls.append(inputs)
      if len(calls) == 2:
        begun.set()
      return generate(*inputs)

    return run

  def wait_and_save(*content):
    assert begun.wait(60), 'the first batch was written before the second began'
    save(*content)

  monkeypatch.setattr(generation, 'compile_generate', watched)
  monkeypatch.setattr(sample_set, 'save_part', wait_and_save)
  folder = run(trained, 'overlapping', num_samples=20, batch_size=10, grid_columns=1)
  assert len(load_samples(folder, 20)[1]) == 20


def test_a_set_killed_at_60_percent_is_finished_as_if_it_had_not_been(trained, monkeypatch, capsys):
  changes = {'num_samples': 100, 'batch_size': 10, 'grid_columns': 1}
  whole, other = (
    run(trained, 'whole', **changes),
    run(trained, 'other', **changes | {'batch_size': 7}),
  )
  kill_after(monkeypatch, 6)
  with pytest.raises(Killed):
    run(trained, 'killed', **changes)
  monkeypatch.undo()
  folder = trained / 'run' / 'samples' / 'killed'
  written = {path.name: path.stat().st_mtime_ns for path in folder.glob('part-*')}
  assert len(written) == 6
  with pytest.raises(
    InputError, match='killed: 60 of 100 samples; finish it with the same command'
  ):
    sample_set.open_set(folder, 100)
  assert not samples.is_complete(experiment_of(trained, 'killed', **changes), folder)
  capsys.readouterr()
  (folder / '.part-00000000.npz-0123456789abcdef.tmp').touch()  # Killed while it wrote.
  run(trained, 'killed', **changes)
  assert not list(folder.glob('.*'))
  told = capsys.readouterr()
  assert '40 of 100 samples to make' in told.out and '100/100' in told.err  # The bar.
  after = {path.name: path.stat().st_mtime_ns for path in folder.glob('part-*')}
  assert len(after) == 10 and all(after[name] == written[name] for name in written)
  assert samples.is_complete(experiment_of(trained, 'killed', **changes), folder)
  images, labels = load_samples(folder, 100)
  assert len(np.unique(images, axis=0)) == 100
  for uninterrupted in (whole, other):
    expected = load_samples(uninterrupted, 100)
    assert images.tobytes() == expected[0].tobytes() and np.array_equal(labels, expected[1])
    fingerprint = sample_set.open_set(uninterrupted, 100).fingerprint
    assert sample_set.open_set(folder, 100).fingerprint == fingerprint
  for name in ('grid.png', 'denoising.gif', 'frames.npz'):
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize('num_samples, size, picture', [(100, 16, 10), (7, 16, 7), (50, 1, 1)])
def test_where_a_sample_lies_in_its_batch_does_not_depend_on_what_is_there(
  num_samples, size, picture
):
  first = np.arange(num_samples - 1, num_samples - 1 - picture, -1, dtype=np.uint32)
  everything = batches_to_make(first, np.ones(num_samples, bool), size, animated=False)
  np.testing.assert_array_equal(np.sort(np.concatenate(everything)), np.arange(num_samples))
  np.testing.assert_array_equal(everything[0][:picture], first)
  assert all(len(batch) == size for batch in everything[:-1])
  wanted = np.random.Generator(np.random.Philox(1)).random(num_samples) < 0.05
  wanted[first[-1]] = True
  some = batches_to_make(first, wanted, size, animated=True)
  expected = [batch for batch in everything if wanted[batch].any()]
  assert [b.tolist() for b in some] == [b.tolist() for b in expected]
  (only,) = batches_to_make(first, np.zeros(num_samples, bool), size, animated=False)
  np.testing.assert_array_equal(only, everything[0])
  assert batches_to_make(first, np.zeros(num_samples, bool), size, animated=True) == []


def test_long_silences_are_broken(trained, monkeypatch):
  spoken = []
  monkeypatch.setattr(generation, 'alive', lambda what: spoken.append(what) or nullcontext())
  monkeypatch.setattr(weights, 'alive', lambda what: spoken.append(what) or nullcontext())
  run(trained, 'spoken', num_samples=3, batch_size=2)
  batch = 'sampling a batch of 2 in 3 steps'
  expected = ['restoring the checkpoint of step 4', 'compiling the sampler', batch]
  assert spoken == [*expected, 'drawing the animation', batch]


def test_given_counts_of_labels(trained):
  counts = (3, 0, 5, 0, 0, 1, 0, 0, 0, 4)
  folder = run(trained, 'counted', label_counts=counts, num_samples=13)
  _, labels = load_samples(folder, 13)
  np.testing.assert_array_equal(labels, [0, 0, 0, 2, 2, 2, 2, 2, 5, 9, 9, 9, 9])
  identity = sample_set.read_meta(folder)['identity']
  assert identity['labels'] == {'counts': list(counts)}
  with np.load(folder / 'frames.npz') as file:
    np.testing.assert_array_equal(file['labels'], [0, 2, 5, 9])
    np.testing.assert_array_equal(file['index'], [0, 3, 8, 9])
  with pytest.raises(InputError, match=r"labels: \{'counts'.*asked 'balanced'"):
    run(trained, 'counted', num_samples=13)
  with pytest.raises(InputError, match=r"labels: \{'counts'.*\[4, 0, 4"):
    run(trained, 'counted', label_counts=(4, 0, 4, *counts[3:]), num_samples=13)
  run(trained, 'counted', label_counts=counts, num_samples=13)


def test_classes_are_chosen_by_name_and_exported_as_prepare_takes_them(trained):
  """The digits' names are '0' to '9'; 3 is a number, '3' and '7' are names."""
  meta = json.loads((trained / 'run' / 'data.json').read_text())
  assert meta['label_names'][7] == '7'
  folder = run(trained, 'named', labels=('7', 3), num_samples=5, export=('png',))
  _, labels = load_samples(folder, 5)
  np.testing.assert_array_equal(labels, [7, 3, 7, 3, 7])
  run(trained, 'named', labels=(7, '3'), num_samples=5)  # The same set.
  with pytest.raises(InputError, match=r"config\.sample\.labels: got 'seven', allowed the names"):
    run(trained, 'other', labels=('seven',))
  config = folder_config.get_config(str(folder / 'png'))
  config.update_from_flattened_dict({'data.dir': str(trained / 'again'), 'data.holdout': 2})
  run_mode('prepare', config.to_dict(), {}, trained / 'again', as_json=False)
  found = json.loads((trained / 'again' / 'data.json').read_text())
  assert found['label_names'] == ['3', '7'] and found['num_train'] + found['num_holdout'] == 5


@pytest.mark.parametrize(
  'changes, messages',
  [
    ({'sample.label_counts': (10, 9)}, [r'got 2 counts, allowed 10, one a class', r'sum to 19']),
    ({'sample.label_counts': (2,) * 9 + (1,)}, [r'that sum to 19, allowed .*num_samples 20']),
    ({'sample.label_counts': (3, -1) + (2,) * 9}, [r'got -1 among', r'got 11 counts']),
    (
      {'sample.label_counts': (2,) * 10, 'sample.labels': (1,)},
      [r'label_counts: got \(2, .*allowed \(\) beside config\.sample\.labels'],
    ),
    ({'sample.label_counts': (20,), 'num_classes': 0}, [r'got 1 counts, allowed none']),
    (
      {'sample.label_counts': (2,) * 10, 'eval.num_samples': 10},
      [r'config\.eval\.num_samples: got 10, allowed 0 or the 20'],
    ),
    ({'sample.export': ('npz', 'jpeg')}, [r"config\.sample\.export: .*allowed of 'npz', 'png'"]),
  ],
)
def test_counts_and_exports_that_cannot_be(tmp_path, changes, messages):
  with pytest.raises(InputError) as caught:
    create(tiny_mapping(tmp_path, **changes))
  for message in messages:
    assert re.search(message, str(caught.value)), str(caught.value)


def test_a_finished_set_is_exported_without_a_checkpoint(trained, monkeypatch, capsys):
  folder = run(trained, 'exported', num_samples=20)
  made, labels = load_samples(folder, 20)
  no_sampling(monkeypatch)
  capsys.readouterr()
  run(trained, 'exported', num_samples=20, export=('npz', 'png'))
  assert '0 of 20 samples to make' in capsys.readouterr().out
  with np.load(folder / 'samples.npz') as file:
    np.testing.assert_array_equal(file['arr_0'], made.repeat(3, axis=-1))
    np.testing.assert_array_equal(file['arr_1'], labels)
    assert file['arr_0'].dtype == np.uint8 and file['arr_1'].dtype == np.int64
  for number in range(20):
    with Image.open(folder / 'png' / f'{labels[number]}' / f'{number:06d}.png') as image:
      np.testing.assert_array_equal(np.asarray(image), made[number, ..., 0])
  written = {
    path: path.stat().st_mtime_ns for path in [folder / 'samples.npz', *folder.glob('png/*/*')]
  }
  (folder / 'png' / '7' / '000007.png').unlink()
  run(trained, 'exported', num_samples=20, export=('npz', 'png'))
  again = {path: path.stat().st_mtime_ns for path in written}
  assert [path.name for path in written if again[path] != written[path]] == ['000007.png']


def test_an_export_follows_the_set(trained):
  """Enlarged, and asked for in part."""
  for count in (12, 24, 18):
    folder = run(trained, 'growing', num_samples=count, export=('npz', 'png'))
    made = load_samples(folder, count)[0]
    np.testing.assert_array_equal(adm.read(folder / 'samples.npz').images[..., :1], made)
    exported = image_folder.open_folder(folder / 'png', 1)
    order = [int(name[-10:-4]) for name in exported.names]  # By class.
    found = exported.read(np.arange(exported.num_examples))['image']
    np.testing.assert_array_equal(found, made[order])


def test_a_damaged_part_is_not_exported(trained):
  folder = run(trained, 'torn', num_samples=20)
  path = folder / 'part-00000000.npz'
  content = bytearray(path.read_bytes())
  content[300] ^= 1
  path.write_bytes(content)
  with pytest.raises(DamagedError, match=r'part-00000000\.npz: damaged'):
    run(trained, 'torn', num_samples=20, export=('npz',))
  assert not (folder / 'samples.npz').exists()


def test_other_parameters_of_the_same_step_go_beside(trained, monkeypatch):
  """A finished set is compared by checksums, without restoring."""
  folder = run(trained, 'mine')
  meta = sample_set.read_meta(folder)
  with monkeypatch.context() as patch:
    no_sampling(patch)
    run(trained, 'mine')
  other = {**meta['identity'], 'parameters': '0123abcd'}
  files.write_json(folder / 'meta.json', {**meta, 'identity': other})
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  run(trained, 'mine')
  beside = sample_set.read_meta(folder.with_name('mine-step4'))
  assert beside['identity'] == meta['identity']
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
  with pytest.raises(InputError, match=r"average: 'ema', asked ''"):
    run(trained, 'mine', average='')


def test_frames_are_those_of_the_samples_from_noise_to_result(trained):
  folder = run(trained, 'frames', num_samples=40, grid_columns=3)
  experiment = create(tiny_mapping(trained))
  stored = sample_set.open_set(folder, 40)
  with np.load(folder / 'frames.npz') as file:
    found = dict(file)
  frames, index = found['frames'], found['index']
  assert frames.shape == (3, 10, 8, 8, 1) and frames.dtype == np.uint8
  np.testing.assert_array_equal(found['labels'], np.arange(10))
  assert found['labels'].dtype == np.int32
  np.testing.assert_array_equal(index, np.arange(10))  # The first sample of each class.
  assert np.abs(frames[-1].astype(int) - stored.read(index)['image']).max() <= 1
  saturated = np.mean((frames[0] == 0) | (frames[0] == 255))
  assert (
    abs(saturated - 0.317) < 0.1
  )  # Noise of deviation 1: beyond +-1, as the normal distribution.
  times = experiment.times(3)
  np.testing.assert_allclose(found['t'], times[[0, 2, 3]])  # 1, 1.5 and 3 of 3 steps, rounded.
  assert found['t'].dtype == np.float32 and found['t'][0] == 1 and found['t'][-1] == 0
  assert not np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[1], frames[2])


def test_frames_without_classes_are_of_the_first_samples(trained):
  folder = run(trained, 'one', num_samples=15, grid_columns=3, labels=(4,))
  with np.load(folder / 'frames.npz') as file:
    found = dict(file)
  np.testing.assert_array_equal(found['index'], np.arange(10))
  np.testing.assert_array_equal(found['labels'], np.full(10, 4))
  stored = sample_set.open_set(folder, 15)
  made = stored.read(np.arange(10))['image']
  assert np.abs(found['frames'][-1].astype(int) - made).max() <= 1


@pytest.mark.parametrize('lost', ['frames.npz', 'denoising.gif', 'grid.png'])
def test_lost_pictures_are_made_again(trained, lost):
  folder = run(trained, 'pictures', num_samples=30)
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  (folder / lost).unlink()
  run(trained, 'pictures', num_samples=30)
  after = {path.name: path.read_bytes() for path in folder.iterdir()}
  assert after == before


def test_the_numbers_of_a_set_are_kept_when_its_pictures_are_made_again(trained):
  folder = run(trained, 'numbers', num_samples=10)
  meta = json.loads((folder / 'meta.json').read_text())
  assert meta['num_samples'] == 10 and meta['images_per_s'] > 0
  (folder / 'frames.npz').unlink()
  run(trained, 'numbers', num_samples=10)
  assert json.loads((folder / 'meta.json').read_text()) == meta


def test_the_scale_and_the_channels_of_guidance_belong_to_a_set(trained):
  flags = {'cfg_scale': 2.0, 'num_samples': 10}
  folder = run(trained, 'guided', **flags)
  with pytest.raises(InputError, match=r'cfg_scale: 2\.0, asked 3\.0'):
    run(trained, 'guided', **{**flags, 'cfg_scale': 3.0})
  assert sample_set.read_meta(folder)['identity']['guide_channels'] == 0
  run(trained, 'guided', **flags)
  meta = sample_set.read_meta(folder)
  assert meta['evaluations'] == 6 and meta['identity']['guidance'] is None
  other = {'guidance.interval': (0.25, 3.0)}
  with pytest.raises(InputError, match=r"guidance: None, asked \{'interval': \[0\.25, 3\.0\]\}"):
    run(trained, 'guided', **flags, **other)
  with pytest.raises(InputError, match='guide_channels: 0, asked 1'):
    run(trained, 'guided', **flags, guide_channels=1)
  with pytest.raises(InputError, match=r'config\.sample\.guide_channels: got 2'):
    run(trained, 'guided', **flags, guide_channels=2)
