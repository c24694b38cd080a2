"""Processes whose data differ are told by which of them has what, and end together."""

import time
from types import SimpleNamespace

import pytest

from diffusion_jax.data import latents
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.experiment import agreement
from tests.support import crowd


class Data:
  """Prepared images of this fingerprint; None: there are none; '': they are damaged."""

  def __init__(self, folder, fingerprint):
    self.folder, self._fingerprint = folder, fingerprint

  @property
  def prepared(self):
    if not self._fingerprint:
      kind = InputError if self._fingerprint is None else DamagedError
      raise kind(f'{self.folder}: not to be had\nsecond line')
    return self.folder / self._fingerprint, {'fingerprint': self._fingerprint}


def compare(tmp_path, *fingerprints):
  def work(number):
    agreement.require_same_images(Data(tmp_path / f'host{number}', fingerprints[number]))

  return crowd.run(len(fingerprints), work)


def test_equal_copies_are_as_good_as_one_folder(tmp_path):
  assert compare(tmp_path, 'aa', 'aa', 'aa') == [None] * 3
  assert compare(tmp_path, None, None) == [None] * 2  # The caller reports it.
  agreement.require_same_images(Data(tmp_path, None))  # A single process has nothing to compare.


def test_a_shared_folder_may_show_a_new_set_late(tmp_path, monkeypatch):
  monkeypatch.setattr(agreement, 'LOOKED_EVERY', 0.01)
  looks = []

  class Late(Data):
    @property
    def prepared(self):
      looks.append(self)
      self._fingerprint = 'aa' if len(looks) > 5 else None
      return super().prepared

  def work(number):
    data = (Late if number else Data)(tmp_path, 'aa')
    agreement.require_same_images(data)

  assert crowd.run(2, work) == [None] * 2 and len(looks) == 6
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('shared', [True, False])
def test_a_set_that_never_comes_is_waited_for_in_a_shared_folder_alone(
  tmp_path, monkeypatch, shared
):
  monkeypatch.setattr(agreement, 'LOOKED_EVERY', 0.01)
  monkeypatch.setattr(agreement, 'ARRIVES_WITHIN', 0.5)
  (tmp_path / 'host0').mkdir()

  def work(number):
    folder = tmp_path / f'host{0 if shared else number}'
    agreement.require_same_images(Data(folder, None if number else 'aa'))

  began = time.monotonic()
  assert all(isinstance(error, InputError) for error in crowd.run(2, work))
  assert (time.monotonic() - began > 0.5) == shared


@pytest.mark.parametrize('other, told', [('bb', 'bb in '), (None, 'none (')])
def test_a_process_with_other_data_or_none_ends_all(tmp_path, other, told):
  for error in compare(tmp_path, 'aa', 'aa', other):
    assert isinstance(error, InputError) and error.on_all
    text = str(error)
    assert f'process 1: aa in {tmp_path / "host1" / "aa"}\n' in text
    assert f'process 2: {told}{tmp_path / "host2"}' in text and 'copy the folder' in text
    assert 'second line' not in text


def test_damaged_data_on_one_process_are_damaged_for_all(tmp_path):
  for error in compare(tmp_path, 'aa', ''):
    assert isinstance(error, DamagedError) and error.exit_code == 3


@pytest.mark.parametrize('digests', [['1', '2'], None])
def test_latents_are_compared_by_their_content(tmp_path, monkeypatch, digests):
  def find(folder, meta, autoencoder, *, mirrored):
    assert (autoencoder, mirrored) == ('a', True)
    found = ['1'] if folder.name == 'host0' else digests
    if found is None:
      raise InputError('no latents')
    return {'chunk_digests': found, 'autoencoder': {'fingerprint': 'a'}}

  monkeypatch.setattr(latents, 'find', find)

  def work(number, same=False):
    prepared = tmp_path / f'host{0 if same else number}', {}
    agreement.require_same_latents(
      SimpleNamespace(
        config=SimpleNamespace(data=SimpleNamespace(flip=True)),
        first_stage=SimpleNamespace(fingerprint='a'),
        datasets=SimpleNamespace(prepared=prepared),
      )
    )

  for error in crowd.run(2, work):
    assert isinstance(error, InputError) and 'different latents' in str(error)
  assert crowd.run(2, lambda number: work(number, same=True)) == [None, None]
