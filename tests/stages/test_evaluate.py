"""--mode=evaluate and reference: what is compared with what, what the numbers say of themselves, refusals."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.command import run_mode
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.evaluation import fid
from diffusion_jax.experiment.checks import create
from diffusion_jax.experiment.evaluator import Evaluator
from diffusion_jax.experiment.weights import open_checkpoints
from diffusion_jax.sampling import sample_set
from tests.conftest import tiny_mapping
from tests.support.samples import load_samples

PIXELS = {
  'eval.features.name': 'pixels',
  'eval.metrics': ('fid',),
  'eval.real_baseline': False,
}


def run(mode, folder, tmp_path, **changes):
  mapping = tiny_mapping(tmp_path, **changes)
  run_mode(mode, mapping, changes, folder, as_json=False)
  return create(mapping)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A trained work directory that the tests below only add to."""
  tmp_path = tmp_path_factory.mktemp('trained')
  run('train', tmp_path / 'run', tmp_path)
  return tmp_path


def evaluate(trained, name, **changes):
  """The result of a sample set `name`, in pixel features unless asked otherwise."""
  run('evaluate', trained / 'run', trained, **{**PIXELS, 'sample.name': name, **changes})
  return json.loads((trained / 'run' / 'eval' / f'{name}.json').read_text())


def pixels(images):
  return images.reshape(len(images), -1).astype(np.float32)


def frechet(images, reference):
  return fid.distance(*fid.feature_stats(pixels(images)), *fid.feature_stats(pixels(reference)))


def images_of(trained, name, count=20):
  return load_samples(trained / 'run' / 'samples' / name, count)[0]


def split(trained, name):
  mapping = tiny_mapping(trained)
  source = create(mapping).datasets.images(name)
  return source.read(np.arange(source.num_examples))['image']


def test_the_result_says_what_its_numbers_mean(trained, capsys):
  result = evaluate(trained, 'said', **{'sample.cfg_scale': 2.0})
  expected = frechet(images_of(trained, 'said'), split(trained, 'holdout'))
  assert result['metrics']['frechet_distance'] == pytest.approx(expected, rel=1e-6)
  protocol, samples = result['protocol'], result['samples']
  assert protocol['num_samples'] == 20 and protocol['reference_size'] == 297
  assert protocol['class_balance'] == 'balanced' and protocol['backend'] == 'jax'
  assert protocol['reference'].endswith('-holdout') and protocol['features_digest'] == '0..255'
  assert protocol['quantisation'] and protocol['resize'] == 'none'
  wanted = dict(seed=0, sampler='ddim', num_steps=3, cfg_scale=2.0, average='ema', step=4)
  assert {name: samples[name] for name in wanted} == wanted
  assert result['versions']['jax'] and 'commit' in result and result['time'].startswith('20')
  state = create(tiny_mapping(trained)).abstract_state
  sizes = [np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params['model'])]
  assert result['parameters'] == sum(sizes)
  assert len(result['warnings']) == 1 and 'biased upwards' in result['warnings'][0]
  assert 'warning: the covariance of 20 samples has rank 19 of 64' in capsys.readouterr().out


def test_several_seeds_give_mean_and_deviation(trained):
  result = evaluate(trained, 'seeds', **{'eval.num_seeds': 3, 'sample.seed': 5})
  each = [seed['metrics']['frechet_distance'] for seed in result['seeds']]
  assert [seed['seed'] for seed in result['seeds']] == [5, 6, 7] and len(set(each)) == 3
  assert result['metrics']['frechet_distance'] == pytest.approx(np.mean(each), rel=1e-12)
  assert result['deviation']['frechet_distance'] == pytest.approx(np.std(each, ddof=1), rel=1e-12)
  holdout = split(trained, 'holdout')
  for name, value in zip(('seeds', 'seeds-seed6', 'seeds-seed7'), each):
    assert frechet(images_of(trained, name), holdout) == pytest.approx(value, rel=1e-6)
  alone = evaluate(trained, 'alone', **{'sample.seed': 6})  # The same set, made by itself.
  assert alone['metrics']['frechet_distance'] == pytest.approx(each[1], rel=1e-6)
  assert alone['deviation'] == {}


def test_seeds_of_two_checkpoints_are_not_averaged(trained):
  """A set of another checkpoint that has the name of a seed's stays as it is, beside the right one."""
  samples = trained / 'run' / 'samples'
  run('sample', trained / 'run', trained, **{'sample.name': 'mixed', 'sample.checkpoint': '2'})
  run('sample', trained / 'run', trained, **{'sample.name': 'mixed-seed1', 'sample.seed': 1})
  result = evaluate(trained, 'mixed', **{'eval.num_seeds': 2})
  assert len(result['seeds']) == 2 and result['samples']['step'] == 2
  names = ('mixed', 'mixed-seed1', 'mixed-seed1-step2')
  identities = [sample_set.read_meta(samples / name)['identity'] for name in names]
  assert [found['step'] for found in identities] == [2, 4, 2]
  holdout = split(trained, 'holdout')
  for name, seed in zip(('mixed', 'mixed-seed1-step2'), result['seeds']):
    expected = frechet(images_of(trained, name), holdout)
    assert seed['metrics']['frechet_distance'] == pytest.approx(expected, rel=1e-6)


def content_of(folder):
  return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def result_of(folder, name):
  return json.loads((folder / 'eval' / f'{name}.json').read_text())


@pytest.mark.slow
@pytest.mark.unoptimised
def test_after_more_training_new_samples_are_measured_and_old_ones_only_if_chosen(
  trained, tmp_path, capsys
):
  """The same commands before and after; then a training that reaches the same step otherwise."""
  folder, name = tmp_path / 'run', 'ddim3-cfg1'
  shutil.copytree(trained / 'run', folder, ignore=shutil.ignore_patterns('samples', 'eval'))
  samples = folder / 'samples'

  def measure(**changes):
    capsys.readouterr()
    run('evaluate', folder, trained, **PIXELS, **changes)
    return capsys.readouterr().out

  assert 'of step 4 (averaged parameters ' in measure()
  first = content_of(samples / name)
  longer = {'train.num_steps': 8, 'checkpoint.keep_newest': 1, 'checkpoint.keep_best': 0}
  run('train', folder, trained, **longer)
  out = measure()
  assert 'of step 8 (averaged parameters ' in out and f'{name}-step8' in out
  assert content_of(samples / name) == first
  result = result_of(folder, f'{name}-step8')
  assert (
    result['samples']['step'] == 8 and result['warnings'] == result_of(folder, name)['warnings']
  )
  expected = frechet(load_samples(samples / f'{name}-step8', 20)[0], split(trained, 'holdout'))
  assert result['metrics']['frechet_distance'] == pytest.approx(expected, rel=1e-6)
  assert result['metrics'] != result_of(folder, name)['metrics']

  # Chosen by the step, whose checkpoint is gone, and by the name, which warns.
  for chosen in ({'sample.checkpoint': '4'}, {'sample.name': name}):
    before = result_of(folder, name)
    (folder / 'eval' / f'{name}.json').unlink()
    out = measure(**chosen)
    result = result_of(folder, name)
    assert 'of step 4 (' in out and result['metrics'] == before['metrics']
    warned = [line for line in result['warnings'] if 'step 8' in line]
    assert len(warned) == ('sample.name' in chosen)

  # The same step by another training: neither is taken for the other.
  shutil.rmtree(folder / 'checkpoints')
  run('train', folder, trained, **longer, **{'optimizer.learning_rate': 0.01})
  kept = content_of(samples / f'{name}-step8')
  run('sample', folder, trained)
  (again,) = samples.glob(f'{name}-step8-*')
  identity = sample_set.read_meta(again)['identity']
  assert again.name.endswith(identity['parameters']) and identity['step'] == 8
  assert content_of(samples / f'{name}-step8') == kept and content_of(samples / name) == first
  assert again.name in measure()


def test_num_samples_of_evaluation(trained):
  result = evaluate(trained, 'few', **{'eval.num_samples': 7})
  assert result['protocol']['num_samples'] == 7
  np.testing.assert_array_equal(images_of(trained, 'few', 7).shape, (7, 8, 8, 1))
  with pytest.raises(InputError, match='7 of 8 samples'):
    evaluate(trained, 'few', **{'eval.num_samples': 8})


def test_an_incomplete_set_is_refused_and_finished_by_sampling(trained):
  evaluate(trained, 'torn')
  (trained / 'run' / 'eval' / 'torn.json').unlink()
  first, *_ = sorted((trained / 'run' / 'samples' / 'torn').glob('part-*.npz'))
  first.unlink()
  with pytest.raises(InputError, match=r'torn: \d+ of 20 samples; finish it .*--mode=sample'):
    evaluate(trained, 'torn')
  assert not (trained / 'run' / 'eval' / 'torn.json').exists()
  run('sample', trained / 'run', trained, **{'sample.name': 'torn'})
  assert evaluate(trained, 'torn')['metrics']


def test_a_set_of_another_config_is_refused(trained, monkeypatch):
  """Before the evaluation's network is trained. The labels are no part of a set's own name."""
  evaluate(trained, 'other')
  with pytest.raises(InputError, match=r'cfg_scale: 1\.0, asked 3'):
    evaluate(trained, 'other', **{'sample.cfg_scale': 3.0})
  run('sample', trained / 'run', trained, **{'sample.labels': (3,), 'sample.num_steps': 2})
  monkeypatch.setattr(Evaluator, 'check', lambda *_: pytest.fail('too late'))
  with pytest.raises(InputError, match=r"labels: \[3\], asked 'balanced'"):
    evaluate(trained, '', **{'sample.num_steps': 2})


@pytest.mark.parametrize('form', ['train', 'folder', 'statistics', 'images'])
def test_other_references(trained, form):
  """The training images in four forms have one distance."""
  images, given = split(trained, 'train'), trained / f'reference-{form}'
  if form == 'folder':
    given.mkdir()
    for number, image in enumerate(images):
      Image.fromarray(image[..., 0]).save(given / f'{number:04d}.png')
  elif form == 'statistics':
    mean, covariance = fid.feature_stats(pixels(images))
    given = given.with_suffix('.npz')
    np.savez(given, mu=mean, sigma=covariance)
  elif form == 'images':  # Of three channels, which have to be equal where samples are grey.
    given = given.with_suffix('.npz')
    np.savez(
      given, arr_0=np.stack([images[:30, ..., 0], *[255 - images[:30, ..., 0]] * 2], axis=-1)
    )
    with pytest.raises(InputError, match=r'images 8x8x3, but samples are 8x8x1'):
      evaluate(trained, 'images', **{'eval.reference': str(given)})
    np.savez(given, arr_0=np.repeat(images, 3, axis=-1))
  else:
    given = 'train'
  result = evaluate(trained, form, **{'eval.reference': str(given)})
  expected = frechet(images_of(trained, form), images)
  assert result['metrics']['frechet_distance'] == pytest.approx(expected, rel=1e-6)
  assert result['protocol']['reference_size'] == (0 if form == 'statistics' else 1500)
  if form == 'statistics':
    with pytest.raises(InputError, match=r"config\.eval\.reference: got statistics alone.*'kid'"):
      evaluate(trained, form, **{'eval.reference': str(given), 'eval.metrics': ('kid',)})


def test_reference_statistics_by_one_command(trained, capsys):
  """Before training too; evaluation finds the features, other tools the statistics."""
  run('reference', trained / 'new', trained, **PIXELS)
  assert '297 images' in capsys.readouterr().out
  (path,) = (trained / 'new').glob('reference-*.npz')
  with np.load(path) as file:
    mean, covariance = fid.feature_stats(pixels(split(trained, 'holdout')))
    np.testing.assert_allclose(file['mu'], mean, rtol=1e-12)
    np.testing.assert_allclose(file['sigma'], covariance, rtol=1e-12, atol=1e-9)
  assert list((trained / 'data' / 'features').glob('pixels-*.npz'))
  given = {'eval.reference': str(path)}
  by_file, directly = evaluate(trained, 'mine', **given), evaluate(trained, 'direct')
  assert by_file['metrics'] == pytest.approx(directly['metrics'], rel=1e-9)
  with pytest.raises(InputError, match='holds statistics already'):
    run('reference', trained / 'new', trained, **PIXELS, **given)


def write(path, **arrays):
  np.savez(path, **arrays)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-30])


def mixed_folder(path):
  path.mkdir()
  for side in (8, 9):
    Image.fromarray(np.zeros((side, side), np.uint8)).save(path / f'{side}.png')


BAD = {
  'no such file': (lambda p: None, {}, InputError, 'no such file or folder'),
  'mixed sizes': (mixed_folder, {}, InputError, r'9\.png: mixed sizes'),
  'wrong keys': (
    lambda p: write(p, mean=np.zeros(3)),
    {},
    InputError,
    "got 'mean', allowed 'arr_0'",
  ),
  'other features': (
    lambda p: write(p, mu=np.zeros(3), sigma=np.eye(3)),
    {},
    InputError,
    r"statistics of 3 features, but 'pixels' has 64",
  ),
  'truncated': (
    lambda p: (write(p, mu=np.zeros(64), sigma=np.eye(64)), truncate(p)),
    {},
    DamagedError,
    'not a whole .npz',
  ),
  'too few for KID': (
    None,
    {'eval.metrics': ('fid', 'kid')},
    InputError,
    r'config\.eval\.kid\.subset_size: got 1000, allowed up to the 20 images of the samples',
  ),
  'torch-fidelity has no pixels': (
    None,
    {'eval.backend': 'torch_fidelity'},
    InputError,
    "config.eval.backend: got 'torch_fidelity', allowed 'jax'",
  ),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_told_before_any_sample_is_made(trained, tmp_path, case, capsys):
  make, changes, error, message = BAD[case]
  given = {}
  if make:
    path = tmp_path / ('given' if case == 'mixed sizes' else 'given.npz')
    make(path)
    given = {'eval.reference': str(path)}
  name = case.replace(' ', '-')
  with pytest.raises(error, match=message):
    evaluate(trained, name, **given, **changes)
  assert not (trained / 'run' / 'samples' / name).exists()
  assert not (trained / 'run' / 'eval' / f'{name}.json').exists()
  assert 'frechet' not in capsys.readouterr().out


def test_without_the_fid_network_one_message_and_no_number(trained, tmp_path, monkeypatch):
  monkeypatch.setenv('TORCH_HOME', str(tmp_path))
  monkeypatch.setattr('diffusion_jax.pretrained.inception.URL', 'http://127.0.0.1:9/nothing.pth')
  with pytest.raises(InputError, match=r'weights-inception-2015-12-05-6726825d\.pth'):
    evaluate(trained, 'without', **{'eval.features.name': 'inception'})
  assert not (trained / 'run' / 'samples' / 'without').exists()


def test_neighbours_are_the_nearest_training_images(trained):
  train = split(trained, 'train')
  evaluate(trained, 'copies', **{'eval.neighbours': 4})
  folder = trained / 'run' / 'samples' / 'copies'
  parts = sorted(folder.glob('part-*.npz'))
  for path in parts:  # Samples that are training images, in another order.
    with np.load(path) as file:
      content = dict(file)
    content['images'] = train[(7 * content['index'] + 3) % len(train)]
    with open(path, 'wb') as file:
      np.savez(file, **content)
  result = evaluate(trained, 'copies', **{'eval.neighbours': 4})
  assert result['neighbours']['nearest_training_image'] == pytest.approx(0, abs=1e-3)
  assert result['neighbours']['of_reference_images'] > 10
  picture = np.asarray(Image.open(trained / 'run' / 'eval' / 'copies-neighbours.png'))
  side = (picture.shape[0] - 2) // 4 - 2
  left = picture.shape[1] - 10 * (side + 2)
  sample = picture[2 : 2 + side, left : left + side]
  nearest = picture[2 : 2 + side, left + 2 * (side + 2) : left + 2 * (side + 2) + side]
  np.testing.assert_array_equal(sample, nearest)
  shutil.rmtree(folder)


@pytest.mark.slow
def test_evaluation_during_training(tmp_path, capsys):
  """In the metrics file with its number, and the best checkpoint is kept by it."""
  changes = {
    **PIXELS,
    'train.num_steps': 6,
    'train.eval_every_steps': 2,
    'train.eval_num_samples': 12,
    'checkpoint.keep_newest': 1,
    'checkpoint.best_metric': 'frechet_distance',
  }
  run('train', tmp_path / 'run', tmp_path, **changes)
  assert capsys.readouterr().out.count('rank 11 of 64') == 1  # Said once, before training.
  lines = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
  found = {
    line['step']: line['frechet_distance@12'] for line in lines if 'frechet_distance@12' in line
  }
  assert set(found) == {2, 4, 6} and len(set(found.values())) == 3
  checkpoints = open_checkpoints(create(tiny_mapping(tmp_path, **changes)), tmp_path / 'run', True)
  best, steps = checkpoints.best_step(), checkpoints.steps()
  checkpoints.close()
  assert best == min(found, key=found.get) and set(steps) == {best, 6}
  # What --mode=evaluate gives the same samples of the last checkpoint.
  flags = {**PIXELS, 'eval.num_samples': 12, 'sample.checkpoint': '6', 'sample.name': 'last'}
  run('evaluate', tmp_path / 'run', tmp_path, **flags)
  result = json.loads((tmp_path / 'run' / 'eval' / 'last.json').read_text())
  assert result['metrics']['frechet_distance'] == pytest.approx(found[6], rel=2e-2)  # Rounding.


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'checkpoint.best_metric': 'frechet_distance'}, 'eval_every_steps is 0'),
    (
      {'checkpoint.best_metric': 'frechet_distance', 'train.eval_every_steps': 3},
      'divisors of .* 2',
    ),
    (
      {'checkpoint.best_metric': 'kernel_distance', 'train.eval_every_steps': 2},
      'frechet_distance',
    ),
    ({'checkpoint.best_metric': 'psnr'}, "allowed for objective 'denoising': holdout_loss"),
  ],
)
def test_best_metrics_that_cannot_be(tmp_path, changes, message):
  with pytest.raises(InputError, match=message):
    run('train', tmp_path / 'run', tmp_path, **PIXELS, **changes)


def test_an_unknown_metric_is_refused_with_the_list(tmp_path):
  with pytest.raises(InputError, match=r"got 'fd', allowed fid, .*nearest 'fid'"):
    run('train', tmp_path / 'run', tmp_path, **{'eval.metrics': ('fd',)})
