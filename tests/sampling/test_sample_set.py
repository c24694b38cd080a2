"""A stored sample set is read as it was written, in any order, or refused."""

import hashlib
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import files
from diffusion_jax.sampling import sample_set
from tests.support.samples import load_samples

SHAPE = (4, 6, 3)


def some(count, shape=SHAPE):
  """Images that depend on their number alone, and labels."""
  rng = np.random.Generator(np.random.Philox(7))
  images = rng.integers(0, 256, (count, *shape), np.uint8)
  return images, (np.arange(count) % 5).astype(np.int32)


def write(folder, order, size, shape=SHAPE):
  """A part a batch of `order`."""
  folder.mkdir(parents=True, exist_ok=True)
  images, labels = some(max(order) + 1, shape)
  for start in range(0, len(order), size):
    index = np.asarray(order[start : start + size], np.uint32)
    sample_set.save_part(folder, index, images[index], labels[index])
  return folder


def picture_first(count):
  """Some samples from everywhere in the first part, the others in order."""
  first = np.arange(0, count, 9)[:8]
  return [*first, *np.setdiff1d(np.arange(count), first)]


def damage(path, where):
  content = bytearray(path.read_bytes())
  content[where] ^= 16
  path.write_bytes(content)


@pytest.mark.parametrize('size', [1, 8, 13, 200])
def test_every_sample_is_read_in_any_order(tmp_path, size):
  folder = write(tmp_path / 'set', picture_first(100), size)
  images, labels = some(100)
  stored = sample_set.open_set(folder, 90)
  assert stored.num_examples == 90 and stored.element['image'].shape == SHAPE
  mixed = np.random.Generator(np.random.Philox(3)).permutation(90)
  for index in (np.arange(90), np.arange(20, 50), mixed, np.array([5, 5, 0]), np.array([], int)):
    batch = stored.read(index)
    np.testing.assert_array_equal(batch['image'], images[index])
    np.testing.assert_array_equal(batch['label'], labels[index])
    assert batch['image'].dtype == np.uint8 and batch['label'].dtype == np.int32
  for found, expected in zip(load_samples(folder, 90), (images[:90], labels[:90])):
    np.testing.assert_array_equal(found, expected)


def test_the_fingerprint_is_that_of_the_samples_whatever_the_parts(tmp_path):
  images, labels = some(40)
  content = repr(SHAPE).encode() + images.tobytes() + labels.tobytes()
  expected = hashlib.sha256(content).hexdigest()[:16]
  for size, order in ((7, range(40)), (40, picture_first(40)), (16, range(50))):
    folder = write(tmp_path / f'{size}', list(order), size)
    assert sample_set.open_set(folder, 40).fingerprint == expected
  assert sample_set.open_set(folder, 39).fingerprint != expected
  assert sample_set.open_set(folder, 50).fingerprint != expected
  for name in ('images', 'labels'):  # One value of one sample.
    path = folder / 'part-00000016.npz'
    with np.load(path) as file:
      part = dict(file)
    part[name][3] ^= 1
    np.savez(path, **part)
    assert sample_set.open_set(folder, 40).fingerprint != expected
    part[name][3] ^= 1
    np.savez(path, **part)
  assert sample_set.open_set(folder, 40).fingerprint == expected


def test_reading_in_order_loads_every_part_once(tmp_path, monkeypatch):
  """But for the first part, whose samples lie everywhere; and holds few of them."""
  folder = write(tmp_path / 'set', picture_first(400), 20)
  read, loaded = sample_set._read, []

  def counted(path, *names):
    loaded.extend([path.name] if 'images' in names else [])
    return read(path, *names)

  stored = sample_set.open_parts(folder, 400)
  monkeypatch.setattr(sample_set, '_read', counted)
  for start in range(0, 400, 16):
    stored.read(np.arange(start, start + 16))
  assert len(set(loaded)) == 20 and len(loaded) <= 20 + 1


def test_a_set_is_not_held_in_memory(tmp_path):
  shape = (64, 64, 3)
  folder = write(tmp_path / 'set', list(range(640)), 32, shape)  # 7.9 MB in parts of 0.4.
  tracemalloc.start()
  try:
    stored = sample_set.open_set(folder, 640)
    for start in range(0, 640, 32):
      stored.read(np.arange(start, start + 32))
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  whole = 640 * int(np.prod(shape))
  assert peak < whole * 0.4  # 64 images at once, and two parts.


def test_an_incomplete_set_is_refused_with_both_numbers(tmp_path):
  folder = write(tmp_path / 'set', [*range(1000), *range(1200, 3200)], 500)
  message = f'{folder}: 3,000 of 5,000 samples; finish it with the same command and --mode=sample'
  with pytest.raises(InputError, match=f'^{re.escape(message)}$'):
    sample_set.open_set(folder, 5000)
  with pytest.raises(InputError, match='1,000 of 1,001 samples'):
    sample_set.open_set(folder, 1001)
  with pytest.raises(InputError, match='0 of 7 samples'):
    sample_set.open_set(tmp_path / 'nowhere', 7)
  assert sample_set.open_set(folder, 1000).num_examples == 1000


def test_which_samples_are_there_is_known_without_reading_images(tmp_path, monkeypatch):
  folder = write(tmp_path / 'set', [7, 3, 5, 4, 6, 9], 2)
  read = sample_set._read

  def no_images(path, *names):
    assert 'images' not in names
    return read(path, *names)

  monkeypatch.setattr(sample_set, '_read', no_images)
  np.testing.assert_array_equal(sample_set.stored_indices(folder), [3, 4, 5, 6, 7, 9])
  assert sample_set.stored_indices(tmp_path / 'nowhere').shape == (0,)


@pytest.mark.parametrize('kept', [0, 10, 0.5, -1])
def test_a_part_that_lost_its_end_is_named(tmp_path, kept):
  folder = write(tmp_path / 'set', list(range(30)), 10)
  path = folder / 'part-00000010.npz'
  content = path.read_bytes()
  path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
  for use in (sample_set.stored_indices, lambda f: sample_set.open_set(f, 30)):
    with pytest.raises(DamagedError, match=r'part-00000010\.npz: damaged .*delete it and run'):
      use(folder)


def test_a_flipped_bit_of_an_image_is_noticed_when_a_set_is_opened(tmp_path):
  folder = write(tmp_path / 'set', list(range(30)), 10)
  path = folder / 'part-00000020.npz'
  damage(path, path.read_bytes().index(some(30)[0][25].tobytes()) + 5)
  with pytest.raises(DamagedError, match=r'part-00000020\.npz: damaged .*CRC'):
    sample_set.open_set(folder, 30)
  with pytest.raises(DamagedError, match=r'part-00000020\.npz'):
    sample_set.open_parts(folder, 30).read(np.array([25]))


@pytest.mark.parametrize(
  'changed',
  [
    {'images': np.zeros((10, 4, 6, 1), np.uint8)},
    {'images': np.zeros((9, *SHAPE), np.uint8)},
    {'images': np.zeros((10, *SHAPE), np.float32)},
    {'labels': np.zeros(9, np.int32)},
    {'index': np.arange(10, 20, dtype=np.float32)},
    {'index': None},
  ],
)
def test_parts_that_do_not_fit_are_named(tmp_path, changed):
  folder = write(tmp_path / 'set', list(range(30)), 10)
  path = folder / 'part-00000010.npz'
  with np.load(path) as file:
    part = {**file, **changed}
  np.savez(path, **{name: value for name, value in part.items() if value is not None})
  with pytest.raises(DamagedError, match=r'part-00000010\.npz: damaged'):
    sample_set.open_set(folder, 30)


def test_a_sample_that_two_parts_hold_is_no_obstacle(tmp_path):
  """As when two hosts were stopped and started with other shares."""
  folder = write(tmp_path / 'set', list(range(20)), 10)
  write(folder, [5, 15, 20], 3)
  np.testing.assert_array_equal(load_samples(folder, 21)[0], some(21)[0])


def described(folder, **identity):
  folder.mkdir()
  files.write_json(folder / 'meta.json', {'identity': identity})


def test_a_set_of_other_parameters_has_a_place_beside(tmp_path):
  base = tmp_path / 'ddim'
  wanted = {'step': 8, 'parameters': 'bb', 'seed': 0}
  assert sample_set.place(base, wanted) == base
  described(base, step=4, parameters='aa', seed=0)
  assert sample_set.place(base, {**wanted, 'step': 4, 'parameters': 'aa'}) == base
  assert sample_set.place(base, wanted).name == 'ddim-step8'
  described(tmp_path / 'ddim-step8', step=8, parameters='cc', seed=0)
  assert sample_set.place(base, wanted).name == 'ddim-step8-bb'
  described(tmp_path / 'ddim-step8-bb', **wanted)
  assert sample_set.place(base, wanted).name == 'ddim-step8-bb'
  assert [p.name for p in sample_set.of_step(base, 8)] == ['ddim-step8', 'ddim-step8-bb']
  with pytest.raises(InputError, match=r'seed: 0, asked 1'):
    sample_set.place(base, {**wanted, 'seed': 1})


def test_parts_without_a_description_are_not_mixed_with_another_set(tmp_path):
  folder = tmp_path / 'lost'
  folder.mkdir()
  sample_set.save_part(
    folder, np.arange(2), np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
  )
  with pytest.raises(DamagedError, match=r'meta\.json'):
    sample_set.claim(folder, {'step': 8})


@pytest.mark.parametrize('content', ['', '[]', '3', '{}', '{"identity": []}', '{"identity": 3}'])
def test_a_description_that_is_none_is_damage(tmp_path, content):
  (tmp_path / 'meta.json').write_text(content)
  with pytest.raises(DamagedError, match=r'meta\.json'):
    sample_set.claim(tmp_path, {'seed': 0})


def test_some_samples_are_kept_and_the_others_deleted_whatever_interrupted_it(
  tmp_path, monkeypatch
):
  folder, wanted = write(tmp_path / 'set', picture_first(40), 8), np.array([3, 9, 18, 39, 77])
  images, labels = some(40)

  def require_kept():
    found = sample_set.read_some(folder, wanted)
    np.testing.assert_array_equal(found['index'], wanted[:4])
    np.testing.assert_array_equal(found['image'], images[wanted[:4]])
    np.testing.assert_array_equal(found['label'], labels[wanted[:4]])

  require_kept()
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr('pathlib.Path.unlink', raising(after=2))
    sample_set.keep_only(folder, wanted)
  require_kept()
  for _ in range(2):
    sample_set.keep_only(folder, wanted)
    require_kept()
    np.testing.assert_array_equal(sample_set.stored_indices(folder), wanted[:4])
  assert [path.name for path in folder.iterdir()] == ['part-00000003.npz']
  assert sample_set.read_some(folder, np.array([0])) == {}


def raising(after):
  """Path.unlink that is interrupted after so many files."""
  unlink, done = Path.unlink, []

  def interrupted(path, *arguments, **options):
    if path.suffix == '.npz':
      done.append(path)
      if len(done) > after:
        raise KeyboardInterrupt
    return unlink(path, *arguments, **options)

  return interrupted
