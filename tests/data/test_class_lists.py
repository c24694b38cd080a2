"""The shipped lists are the two ImageNet-100s; a user's list is read as stated."""

import pytest

from diffusion_jax.data import class_lists
from diffusion_jax.errors import InputError


def test_the_two_lists_are_100_known_classes_each_and_share_8():
  cmc, kaggle = (class_lists.read(name, 'sorted') for name in class_lists.SHIPPED)
  known = class_lists.imagenet_names()
  assert len(known) == 1000
  for found in (cmc, kaggle):
    assert len(set(found.ids)) == 100 and set(found.ids) <= set(known)
    assert list(found.ids) == sorted(found.ids)
    assert [known[i] for i in found.ids] == list(found.names)
  assert len(set(cmc.ids) & set(kaggle.ids)) == 8
  assert cmc.digest != kaggle.digest


def test_order_is_part_of_the_digest():
  in_file, in_order = (class_lists.read('cmc', order) for order in ('file', 'sorted'))
  assert in_file.ids[0] == 'n02869837' and in_file.digest != in_order.digest
  assert set(in_file.ids) == set(in_order.ids)


def test_a_list_of_the_user(tmp_path):
  path = tmp_path / 'pets.txt'
  path.write_bytes(b'\xef\xbb\xbfn02123045 tabby cat\r\n# mine:\r\ndog\tHouse dog\r\n\r\neel\r\n')
  found = class_lists.read(str(path), 'file')
  assert found.name == 'pets'
  assert found.ids == ('n02123045', 'dog', 'eel') and found.names == (
    'tabby cat',
    'House dog',
    'eel',
  )


@pytest.mark.parametrize('text, message', [('', '0 lines'), ('cat\ncat\n', '2 lines, 1 different')])
def test_lists_that_cannot_be_used(tmp_path, text, message):
  path = tmp_path / 'list.txt'
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    class_lists.read(str(path), 'sorted')


def test_a_list_that_does_not_exist():
  with pytest.raises(InputError, match=r"config\.data\.class_list: got 'cmcc'.* 'cmc', 'kaggle'"):
    class_lists.read('cmcc', 'sorted')


def test_what_a_source_lacks_is_named():
  cmc = class_lists.read('cmc', 'sorted')
  with pytest.raises(InputError, match=r'none of the 100 classes.*found 2 classes.*class_list=all'):
    class_lists.require_found(cmc, ['cat', 'dog'], 'here')
  with pytest.raises(InputError, match=r'2 of the 100 classes(.|\n)*n01558993 \(robin\)'):
    class_lists.require_found(cmc, cmc.ids[2:], 'here')
  class_lists.require_found(cmc, [*cmc.ids, 'n00000000'], 'here')
