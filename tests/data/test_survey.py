"""The size and channels that are chosen for images which nobody has prepared."""

import pytest
from PIL import Image

from diffusion_jax.data.survey import side_for, survey
from diffusion_jax.errors import InputError
from tests.support.sources import as_tar, as_zip, encoded, picture, write_tree


@pytest.mark.parametrize(
  'sides, side',
  [
    ([500] * 10, 128),
    ([128] * 10, 128),
    ([127] + [500] * 98, 64),  # One of 99 is more than 1%.
    ([127] + [500] * 99, 128),
    ([127, 90] + [500] * 98, 64),
    ([32, 64], 32),
    ([28] * 5, 28),
    ([30] * 5, 28),
    ([8] * 5, 8),
    ([3] * 5, 4),
  ],
)
def test_few_images_are_enlarged(sides, side):
  assert side_for(sides) == side


def test_every_form_gives_the_same(tmp_path):
  root = write_tree(tmp_path / 'set', {'a': 3, 'b': 2, 'c': 4}, size=(90, 70))
  for source in (
    root,
    as_zip(root, tmp_path / 'set.zip'),
    as_tar(root, tmp_path / 'set.tgz', 'w:gz'),
    as_tar(root, tmp_path / 'set.tar'),
  ):
    assert survey(str(source), 'all', 'sorted') == (3, 64, 3)
  assert survey('digits', 'all', 'sorted') == (10, 8, 1)


def test_gray_images_have_one_channel_and_a_colour_among_them_three(tmp_path):
  (tmp_path / 'a').mkdir()
  for number, mode in enumerate(('L', '1')):
    (tmp_path / 'a' / f'{number}.png').write_bytes(encoded(picture(number, mode=mode), 'PNG'))
  assert survey(str(tmp_path), 'all', 'sorted') == (1, 32, 1)
  (tmp_path / 'a' / '2.png').write_bytes(encoded(picture(2), 'PNG'))
  assert survey(str(tmp_path), 'all', 'sorted').channels == 3


def test_bad_files_do_not_count_unless_all_are_bad(tmp_path):
  root = write_tree(tmp_path / 'set', {'a': 2})
  (root / 'a' / '0000.jpg').write_bytes(b'no image')
  assert survey(str(root), 'all', 'sorted').image_size == 32
  (root / 'a' / '0001.jpg').write_bytes(b'')
  with pytest.raises(InputError, match='set: none of the first 2 images'):
    survey(str(root), 'all', 'sorted')


@pytest.mark.parametrize('kind', ['WEBP', 'JPEG', 'PNG', 'BMP', 'GIF'])
def test_the_beginning_of_a_large_file_is_enough_or_all_of_it_is_read(tmp_path, monkeypatch, kind):
  monkeypatch.setattr('diffusion_jax.data.survey.HEADER_BYTES', 700)
  (tmp_path / 'a').mkdir()
  image = Image.effect_noise((200, 150), 50).convert('RGB')
  (tmp_path / 'a' / 'x.png').write_bytes(encoded(image, kind))
  assert survey(str(tmp_path), 'all', 'sorted').image_size == 128
