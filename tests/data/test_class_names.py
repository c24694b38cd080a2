"""Classes by name, and the folders that hold their images."""

import pytest

from diffusion_jax.data.class_names import folder_names, label_of

NAMES = ('cat', 'kit fox', 'ship', 'crane', 'Crane', 'crane', 'red fox')


def test_a_name_is_its_label_whatever_its_case():
  assert [label_of(name, NAMES) for name in ('ship', 'SHIP', 'Kit Fox', 'Crane')] == [2, 2, 1, 4]


@pytest.mark.parametrize(
  'name, hint', [('fox', "'kit fox', 'red fox'"), ('shp', "nearest 'ship'"), ('crane', r'\[3, 5\]')]
)
def test_a_name_of_no_class_lists_the_nearest_and_one_of_several_their_numbers(name, hint):
  with pytest.raises(ValueError, match=f'got {name!r}.*{hint}'):
    label_of(name, NAMES)


def test_every_class_has_a_folder_of_its_own():
  names = ('cat', '../x', '.hidden', '', 'crane', 'Crane', '..')
  found = folder_names(names)
  assert found == ['cat', '_x', 'hidden', 'class (3)', 'crane (4)', 'Crane (5)', 'class (6)']
