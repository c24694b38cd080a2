"""Pixels of sample sets from the same noise, against differences that are known."""

import numpy as np
import pytest

from diffusion_jax.sampling import sample_set
from scripts import paired_sets


def make_set(folder, images, seed=0):
  """In two parts that are not in order."""
  sample_set.claim(
    folder, {'seed': seed, 'labels': 'balanced', 'data': 'abc', 'sampler': folder.name}
  )
  for number, index in enumerate(np.array_split(np.arange(len(images))[::-1], 2)):
    content = {'index': index, 'labels': np.zeros(len(index), np.int32), 'images': images[index]}
    np.savez(folder / f'part-{number:05}.npz', **content)
  return str(folder)


def test_differences_of_known_images(tmp_path, capsys):
  """Half of the pixels 51 levels off are 0.4 / sqrt(2) off; what lies beyond --samples does not count."""
  images = np.random.default_rng(0).integers(60, 200, (6, 4, 4, 1), np.uint8)
  moved = images.copy()
  moved[:4, :2] += 51
  moved[4:] = 0
  fine, other = make_set(tmp_path / 'fine', images), make_set(tmp_path / 'moved', moved)
  paired_sets.main([fine, fine, other, '--samples=4'])
  table = capsys.readouterr().out
  assert '| fine | 0.0000 |' in table and f'| moved | {0.4 / 2**0.5:.4f} |' in table
  seed = make_set(tmp_path / 'seed', images, seed=1)
  for words, message in (
    ([fine, seed, '--samples=4'], 'its seed is 1, that of the first set 0'),
    ([fine, other, '--samples=7'], '6 of 7 samples'),
    ([fine, str(tmp_path), '--samples=4'], 'not a sample set'),
  ):
    with pytest.raises(SystemExit, match=message):
      paired_sets.main(words)
