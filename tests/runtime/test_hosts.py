"""What the processes of a run tell each other, and how they end together."""

import errno
import json
import time

import pytest

from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import hosts
from tests.support import crowd


def test_values_come_in_the_order_of_the_processes():
  def work(number):
    time.sleep(0.02 * (2 - number))
    first = hosts.from_first(lambda: {'by': hosts.number()})
    return hosts.gather(number), hosts.gather('again'), first, hosts.count(), hosts.is_first()

  assert crowd.run(3, work) == [
    ([0, 1, 2], ['again'] * 3, {'by': 0}, 3, number == 0) for number in range(3)
  ]
  assert hosts.gather(5) == [5] and hosts.together(lambda check: check()) == [None]


@pytest.mark.parametrize('failing', [0, 2])
def test_an_error_of_one_process_ends_all(failing):
  """Soon, with its message and exit code, which the first one alone prints."""

  def work(number):
    def own(check):
      if number == failing:
        time.sleep(0.1)
        raise DamagedError('a bad archive')
      while True:
        check()
        time.sleep(0.01)

    return hosts.together(own)

  began = time.monotonic()
  errors = crowd.run(3, work)
  assert time.monotonic() - began < 5
  assert [type(error) for error in errors] == [DamagedError] * 3
  assert all(error.on_all for error in errors)
  text = f'process {failing}: a bad archive' if failing else 'a bad archive'
  assert str(errors[1]) == text
  assert str(errors[failing]) == 'a bad archive'


def test_a_process_that_fails_by_itself_ends_those_that_wait_for_it():
  def work(number):
    with hosts.leaving():
      if number == 1:
        raise DamagedError('its own disk')
      return hosts.from_first(lambda: time.sleep(0.1)) or hosts.gather(number)

  errors = crowd.run(3, work)
  assert [type(error) for error in errors] == [DamagedError] * 3
  assert [str(error) for error in errors] == [
    'process 1: its own disk',
    'its own disk',
    'process 1: its own disk',
  ]
  with pytest.raises(InputError, match='alone'), hosts.leaving():
    raise InputError('alone')


def test_each_process_has_its_own_result_unless_one_fails():
  assert crowd.run(3, lambda number: hosts.on_all(lambda: {number})) == [{0}, {1}, {2}]
  errors = crowd.run(3, lambda number: hosts.on_all(lambda: [0][number]))
  assert [type(error) for error in errors] == [InputError, IndexError, InputError]
  assert hosts.on_all(lambda: 5) == 5


def test_of_several_errors_that_of_the_first_process_counts():
  def work(number):
    def own(check):
      if number:
        raise InputError(f'error {number}')

    return hosts.together(own)

  assert [str(error) for error in crowd.run(3, work)] == [
    'process 1: error 1',
    'error 1',
    'process 1: error 1',
  ]


def test_errors_of_the_program_and_of_files_are_named_elsewhere():
  def work(number):
    def own(check):
      if number:
        raise OSError(errno.ENOSPC, 'No space', '/x/y') if number == 1 else KeyError('k')

    return hosts.together(own)

  first, second = crowd.run(2, work)
  assert isinstance(first, InputError) and 'process 1: /x/y: No space left' in str(first)
  assert isinstance(second, OSError)

  def broken(number):
    return hosts.from_first(lambda: {}['k'])

  first, second = crowd.run(2, broken)
  assert isinstance(first, KeyError) and isinstance(second, InputError)
  assert str(second) == "process 0: KeyError: 'k'"


def test_a_folder_that_is_not_shared_is_told(tmp_path):
  def work(number):
    folder = tmp_path / str(number % 2)
    folder.mkdir(exist_ok=True)
    hosts.gather(0)
    hosts.require_shared(folder, 'config.data.dir', 'copy it')

  for error in crowd.run(4, work):
    assert isinstance(error, InputError) and error.exit_code == 2
    assert 'process 1, 3; copy it' in str(error) and str(error).startswith('config.data.dir=')
  assert [path for folder in tmp_path.iterdir() for path in folder.iterdir()] == []


def test_values_may_be_large():
  value = {'digests': ['0' * 16] * 20_000}
  assert all(found == [value] * 2 for found in crowd.run(2, lambda number: hosts.gather(value)))
  assert len(json.dumps(value)) > 300_000
