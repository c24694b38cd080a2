"""Cached latents: every image has its row, an interruption changes nothing, others' are refused."""

import json
import os

import numpy as np
import pytest

from diffusion_jax.data import latents, packed, sets
from diffusion_jax.data.plan import Recipe
from diffusion_jax.data.prepare import prepare
from diffusion_jax.errors import DamagedError, InputError
from diffusion_jax.runtime import lease
from tests.support.sources import SMALL, write_tree

AUTOENCODER = {'fingerprint': 'a' * 16, 'origin': 'the one'}
SHAPE = (4, 4, 2)


def encode_batch(images):
  """Means: the average of each 2x2 block's R and G minus its mirror image's; log variances: B."""
  blocks = images.astype(np.float32).reshape(len(images), 4, 2, 4, 2, 3).mean(axis=(2, 4)) / 64
  mean = blocks[..., :2] + np.arange(4)[:, None] / 8  # Left and right differ.
  return np.concatenate([mean, -blocks[..., 2:], -blocks[..., 2:] / 2], axis=-1)


@pytest.fixture
def image_set(tmp_path):
  source = write_tree(tmp_path / 'pets', SMALL)
  recipe = Recipe('pets', 8, 3, 'all', 'sorted', 0, 0)
  return prepare(str(source), recipe, tmp_path / 'data', max_bad_fraction=0, workers=1)


def encode(folder, meta, *, batch_size=5, mirrored=True, function=encode_batch, by=AUTOENCODER):
  return latents.encode(folder, meta, by, SHAPE, function, batch_size=batch_size, mirrored=mirrored)


@pytest.mark.parametrize('batch_size', [1, 5, 100])
@pytest.mark.parametrize('mirrored', [False, True])
def test_every_image_has_its_row(image_set, batch_size, mirrored):
  folder, meta = image_set
  made = encode(folder, meta, batch_size=batch_size, mirrored=mirrored)
  for split in packed.SPLITS:
    images = packed.open_split(folder, meta, split)
    source = latents.open_split(folder, meta, made, split, mirrored=mirrored)
    expected, labels = encode_batch(images.values), images.labels
    if split == 'train' and mirrored:
      flipped = encode_batch(images.values[:, :, ::-1])
      expected, labels = np.concatenate([expected, flipped]), np.tile(labels, 2)
    assert source.num_examples == len(expected) and source.label_names == images.label_names
    batch = source.read(np.arange(len(expected))[::-1])
    np.testing.assert_array_equal(batch['posterior'], expected[::-1].astype(np.float16))
    np.testing.assert_array_equal(batch['label'], labels[::-1])
    assert source.element['posterior'].shape == (4, 4, 4)
    assert batch['posterior'].dtype == source.element['posterior'].dtype == np.float16
  latents.verify(folder, meta, made, full=True)


def test_mirrored_latents_serve_a_run_without_flips(image_set):
  folder, meta = image_set
  made = encode(folder, meta)
  plain = latents.open_split(folder, meta, made, 'train', mirrored=False)
  assert plain.num_examples == meta['num_train']
  expected = encode_batch(packed.open_split(folder, meta, 'train').values).astype(np.float16)
  np.testing.assert_array_equal(plain.values, expected)
  assert latents.find(folder, meta, 'a' * 16, mirrored=False) == made


def test_statistics_are_those_of_samples():
  """A million draws from the posteriors, whose deviations the closed form must match."""
  rng = np.random.default_rng(0)
  mean = rng.normal([2.0, -1.0], [1.5, 0.3], (200, 4, 4, 2))
  logvar = rng.uniform(-4, 1, mean.shape)
  found = latents.statistics(np.concatenate([mean, logvar], axis=-1).astype(np.float32))
  drawn = mean + np.exp(logvar / 2) * rng.standard_normal((160, *mean.shape))
  np.testing.assert_allclose(found['mean'], drawn.mean(axis=(0, 1, 2, 3)), atol=5e-3)
  np.testing.assert_allclose(found['std'], drawn.std(), rtol=2e-3)
  centred = drawn - drawn.mean(axis=(0, 1, 2, 3))
  np.testing.assert_allclose(found['std_centred'], centred.std(), rtol=2e-3)
  assert found['std'] > 1.2 * found['std_centred']  # The means of the channels differ.


@pytest.mark.parametrize('stop_after', [1, 3, 5])
def test_an_interruption_changes_nothing(image_set, tmp_path, monkeypatch, stop_after):
  folder, meta = image_set
  whole = encode(folder, meta, by={**AUTOENCODER, 'fingerprint': 'b' * 16})
  calls = []
  write = latents.Note.write
  monkeypatch.setattr(latents.Note, 'write', lambda note: (write(note), calls.append(note)))
  monkeypatch.setattr(latents, 'NOTE_SECONDS', 0.0)

  def killed(images):
    if len(calls) == stop_after:
      raise KeyboardInterrupt
    return encode_batch(images)

  with pytest.raises(KeyboardInterrupt):
    encode(folder, meta, function=killed)
  assert latents.existing(folder) == ['b' * 16]  # Half of them is not found.
  encoded = []
  made = encode(folder, meta, function=lambda x: (encoded.append(len(x)), encode_batch(x))[1])
  assert made['chunk_digests'] == whole['chunk_digests']
  assert made['statistics'] == whole['statistics']
  num_batches = 3 + 3 + 2  # Of 12, 12 and 6 rows.
  assert len(encoded) == num_batches - stop_after


def test_several_batches_are_computed_at_once(image_set):
  """What is handed over is waited for when the next two are handed over too."""
  events = []

  class Computed:
    def __init__(self, images):
      self.number = sum(kind == 'given' for kind, _ in events)
      self.values = encode_batch(images)
      events.append(('given', self.number))

    def __array__(self, *_, **__):
      events.append(('waited for', self.number))
      return self.values

  encode(*image_set, function=Computed)
  assert len(events) == 2 * 8
  for number in range(8):
    given, waited = (events.index((kind, number)) for kind in ('given', 'waited for'))
    before = [n for kind, n in events[:waited] if kind == 'given']
    assert given < waited and before[-1] == min(number + latents.IN_FLIGHT, 7)


def test_what_was_made_by_others_or_of_others_is_refused(image_set):
  folder, meta = image_set
  with pytest.raises(InputError, match=r'no latents by the autoencoder aaaa.*--mode=prepare'):
    latents.find(folder, meta, 'a' * 16, mirrored=True)
  made = encode(folder, meta, mirrored=False)
  with pytest.raises(InputError, match=r'cccc(.|\n)*only by others:\n  aaaa.*: made by the one'):
    latents.find(folder, meta, 'c' * 16, mirrored=False)
  with pytest.raises(InputError, match=r'without mirrored images, which config\.data\.flip needs'):
    latents.find(folder, meta, 'a' * 16, mirrored=True)
  own = latents.folder_of(folder, made)
  own.rename(own.with_name('latents-' + 'd' * 16))  # Moved by hand.
  with pytest.raises(InputError, match=r'by another autoencoder .aaaa.*, not dddd'):
    latents.find(folder, meta, 'd' * 16, mirrored=False)
  other = {**meta, 'fingerprint': 'e' * 16}
  own.with_name('latents-' + 'd' * 16).rename(own)
  with pytest.raises(InputError, match=r'of other images \(.*, not eeee.*delete it'):
    latents.find(folder, other, 'a' * 16, mirrored=False)


def test_mirrored_latents_replace_plain_ones(image_set):
  folder, meta = image_set
  encode(folder, meta, mirrored=False)
  made = encode(folder, meta, mirrored=True)
  assert latents.find(folder, meta, 'a' * 16, mirrored=True) == made
  assert sorted(p.name for p in latents.folder_of(folder, made).iterdir()) == [
    'meta.json',
    'posterior.npy',
  ]


@pytest.mark.parametrize('full', [True, False])
def test_damage_is_seen(image_set, full):
  folder, meta = image_set
  made = encode(folder, meta)
  path = latents.folder_of(folder, made) / 'posterior.npy'
  with open(path, 'r+b') as file:
    file.seek(-3, os.SEEK_END)
    byte = file.read(1)[0]
    file.seek(-3, os.SEEK_END)
    file.write(bytes([byte ^ 1]))
  with pytest.raises(DamagedError, match=r'posterior\.npy: 1 of 1 parts'):
    latents.verify(folder, meta, made, full=full)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(DamagedError, match=r'posterior\.npy: .* bytes, expected'):
    latents.verify(folder, meta, made, full=full)
  description = path.with_name('meta.json')
  description.write_text(json.dumps({**json.loads(description.read_text()), 'mirrored': False}))
  with pytest.raises(DamagedError, match='does not agree with its own digest'):
    latents.find(folder, meta, 'a' * 16, mirrored=True)


@pytest.mark.parametrize('content', [None, '', '{"ver', '[]', '3', '{}'])
def test_a_damaged_description_is_said_and_nothing_is_encoded_again(image_set, content):
  folder, meta = image_set
  own = latents.folder_of(folder, encode(folder, meta))
  (own / 'meta.json').unlink()
  if content is not None:
    (own / 'meta.json').write_text(content)
  for ask in (latents.usable, latents.find):
    with pytest.raises(
      DamagedError, match=r'meta\.json: (.|\n)*move .*latents-aaaa.* away'
    ) as error:
      ask(folder, meta, 'a' * 16, mirrored=True)
    assert ('missing' if content is None else 'damaged') in str(error.value)
  assert latents.existing(folder) == ['a' * 16] and (own / 'posterior.npy').exists()


@pytest.mark.parametrize('bad', [np.nan, 1e6])
def test_parameters_that_float16_cannot_hold(image_set, bad):
  with pytest.raises(InputError, match=r'config\.vae\.checkpoint: .* not finite in float16'):
    encode(*image_set, function=lambda images: np.full((len(images), 4, 4, 4), bad, np.float32))


def test_two_commands_do_not_share_the_work(image_set, monkeypatch):
  monkeypatch.setattr(lease, 'RENEWED_EVERY', 0.05)
  folder, meta = image_set

  def again(images):
    with pytest.raises(InputError, match=f'encoding .*process {os.getpid()} of host'):
      encode(folder, meta)
    return encode_batch(images)

  encode(folder, meta, function=again)


def test_what_another_autoencoder_left_damaged_is_in_nobodys_way(image_set):
  folder, meta = image_set
  made = encode(folder, meta)
  other = folder / ('latents-' + 'f' * 16)
  other.mkdir()
  (other / 'meta.json').write_text('{')
  assert latents.find(folder, meta, 'a' * 16, mirrored=True) == made
  with pytest.raises(InputError, match=r'ffff.*: made by what is not readable'):
    latents.find(folder, meta, 'c' * 16, mirrored=True)


def test_latents_of_other_images_are_made_again(image_set):
  folder, meta = image_set
  made = encode(folder, meta)
  assert latents.usable(folder, meta, 'a' * 16, mirrored=True) == made
  own = latents.folder_of(folder, made)
  packed.write_meta(own, {**made, 'images': 'e' * 16})  # As if copied from another set.
  assert latents.usable(folder, meta, 'a' * 16, mirrored=True) is None
  assert encode(folder, meta) == made
  with pytest.raises(InputError, match=r'is one prepared set; give the folder that holds it'):
    sets.find(folder, {}, '')


def test_latents_of_an_earlier_version_are_made_again(image_set):
  folder, meta = image_set
  made = encode(folder, meta)
  old = {**made, 'moments_bytes': made['posterior_bytes']}
  del old['posterior_bytes']
  packed.write_meta(latents.folder_of(folder, made), old)
  with pytest.raises(InputError, match='--mode=prepare'):
    latents.find(folder, meta, 'a' * 16, mirrored=True)
  assert latents.usable(folder, meta, 'a' * 16, mirrored=True) is None
  assert encode(folder, meta) == made
