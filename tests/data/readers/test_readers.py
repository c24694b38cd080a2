"""The same images in any form are the same listing and the same bytes; other layouts are refused."""

import os
import tarfile
import zipfile

import pytest

from diffusion_jax.data import class_lists, imagenet100_tfds
from diffusion_jax.data.decode import BadImage
from diffusion_jax.data.readers import archive, digits, imagenet, names, open_source, tfds, tree
from diffusion_jax.data.readers.base import Slice
from diffusion_jax.errors import DamagedError, InputError
from tests.support.sources import (
  SMALL,
  add_bytes,
  as_tar,
  as_zip,
  cmc_and_others,
  encoded,
  picture,
  write_ilsvrc2012,
  write_tree,
)

EVERY = lambda class_id: True  # noqa: E731
READERS = [archive, digits, imagenet, tfds, tree]


@pytest.fixture
def root(tmp_path):
  return write_tree(tmp_path / 'pets', SMALL)


def forms(root):
  """The tree, and archives of it."""
  beside = root.parent
  return {
    'tree': root,
    'tar': as_tar(root, beside / 'pets.tar'),
    'tar.gz': as_tar(root, beside / 'pets.tar.gz', 'w:gz'),
    'tgz': as_tar(root, beside / 'pets.tgz', 'w:gz'),
    'zip': as_zip(root, beside / 'pets.zip'),
  }


def contents(source, keep=EVERY):
  """(split, class, name) -> bytes, of a shuffled request."""
  reader = open_source(str(source))
  entries = sorted(reader.listing(keep).entries, key=lambda e: e.name[::-1])
  found = {}
  for number, payload in reader.payloads(entries):
    e = entries[number]
    found[e.split, e.class_id, e.name] = payload.read() if isinstance(payload, Slice) else payload
  assert len(found) == len(entries)
  return found


def test_every_form_gives_the_same_images(root):
  expected = {
    (
      'holdout' if path.parts[-3] == 'val' else 'train',
      path.parent.name,
      path.name,
    ): path.read_bytes()
    for path in root.rglob('*.jpg')
  }
  assert len(expected) == sum(SMALL.values())
  for name, source in forms(root).items():
    assert contents(source) == expected, name
    some = contents(source, keep=lambda class_id: class_id != 'dog')
    assert some == {key: value for key, value in expected.items() if key[1] != 'dog'}, name


def test_a_folder_that_is_named_like_a_tfds_set_is_a_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_tree(tmp_path / 'cifar10' / 'small', {'a': 1, 'b': 1})
  for source in ('cifar10', 'cifar10/small', 'cifar10/small/'):
    assert open_source(source).form == 'folder of images'
    assert len(contents(source)) == 2


def test_one_reader_at_most_wants_a_source(root, tmp_path):
  write_ilsvrc2012(tmp_path / 'ilsvrc', ['n00000001'])
  sources = [*forms(root).values(), tmp_path / 'ilsvrc', tmp_path / 'ilsvrc' / imagenet.TRAIN]
  for source in [*map(str, sources), 'digits', 'cifar10', 'imagenet2012:5.1.0', 'imagenet100/cmc']:
    assert sum(reader.matches(source) for reader in READERS) == 1, source
  assert names() == ['archive', 'digits', 'imagenet', 'tfds', 'tree']
  with pytest.raises(InputError, match=r"'no/such/folder' does not exist"):
    open_source('no/such/folder')


@pytest.mark.parametrize('split', ['validation', 'val', 'test'])
def test_the_held_out_folder_has_three_names(tmp_path, split):
  root = write_tree(
    tmp_path / 'set', {'train/a': 1, 'train/b': 1, f'{split}/a': 1, f'{split}/b': 1}
  )
  assert sum(key[0] == 'holdout' for key in contents(root)) == 2


def test_validation_wins_over_test_and_it_is_said(tmp_path):
  root = write_tree(tmp_path / 'set', {'train/a': 1, 'validation/a': 2, 'test/a': 3})
  listing = open_source(str(root)).listing(EVERY)
  assert sum(e.split == 'holdout' for e in listing.entries) == 2
  assert listing.notes == ['left out, test/: validation/ is the held-out set']


def test_a_tree_without_splits_is_all_train_below_any_folder(tmp_path):
  flat = write_tree(tmp_path / 'flat', {'outer/inner/a': 2, 'outer/inner/b': 1})
  assert {key[:2] for key in contents(flat)} == {('train', 'a'), ('train', 'b')}


def test_kaggle_cuts_its_train_set_in_parts(tmp_path):
  root = write_tree(
    tmp_path / 'set', {'train.X1/a': 1, 'train.X2/b': 2, 'val.X/a': 1, 'val.X/b': 1}
  )
  found = contents(root)
  assert {key[:2] for key in found if key[0] == 'train'} == {('train', 'a'), ('train', 'b')}
  assert len(found) == 5


def test_suffixes_and_what_is_no_image(tmp_path):
  root = write_tree(tmp_path / 'set', {'a': 1})
  for suffix, kind in (('jpeg', 'JPEG'), ('JPEG', 'JPEG'), ('png', 'PNG'), ('bmp', 'BMP')):
    (root / 'a' / f'x{suffix}.{suffix}').write_bytes(encoded(picture(1), kind))
  (root / 'a' / 'x.webp').write_bytes(encoded(picture(1), 'WEBP'))
  (root / 'a' / 'x.gif').write_bytes(encoded(picture(1, mode='P'), 'GIF'))
  (root / 'a' / 'notes.txt').write_text('hello')
  (root / 'a' / '.DS_Store').write_text('')
  listing = open_source(str(root)).listing(EVERY)
  assert len(listing.entries) == 7
  assert listing.notes == [
    'left out, hidden files: 1, such as a/.DS_Store',
    'left out, files that are no images by their names: 1, such as a/notes.txt',
  ]


@pytest.mark.parametrize(
  'counts, message',
  [
    ({}, r'no images in it \(found nothing\)'),
    ({'train/a': 1, 'a': 1}, r'a beside train; expected train/CLASS/FILE'),
    ({'val/a': 1}, r'val without train'),
    ({'train': 1, 'val/a': 1}, r'lies in no class folder; expected'),
    ({'train/a': 1, 'train/b': 0}, r'class b has no images \(folder (set/)?train/b\)'),
    ({'train/a': 1, 'val/a': 1, 'val/c': 1}, r'classes c are held out but not in train'),
  ],
)
def test_layouts_that_are_not_understood(tmp_path, counts, message):
  root = write_tree(tmp_path / 'set', counts)
  root.mkdir(exist_ok=True)
  sources = {'tree': root, 'zip': as_zip(root, tmp_path / 'set.zip')}
  for source in sources.values():
    with pytest.raises(InputError, match=message) as caught:
      open_source(str(source)).listing(EVERY)
    assert str(source) in str(caught.value)


@pytest.mark.parametrize('counts', [{'.': 3}, {'train': 2, 'val': 1}])
def test_images_without_class_folders_are_of_one_class(tmp_path, counts):
  root = write_tree(tmp_path / 'set', counts)
  (root / 'empty').mkdir()
  for source in (root, as_zip(root, tmp_path / 'set.zip')):
    listing = open_source(str(source)).listing(EVERY)
    assert len(listing.class_ids) == 1 and len(listing.entries) == 3
    assert sum(e.split == 'holdout' for e in listing.entries) == counts.get('val', 0)


def test_images_beside_class_folders_are_refused(tmp_path):
  root = write_tree(tmp_path / 'set', {'.': 3, 'a': 2})
  with pytest.raises(InputError, match=r'0000\.jpg lies in no class folder; expected'):
    open_source(str(root)).listing(EVERY)


def test_a_pipe_is_no_image_and_nothing_waits_for_it(tmp_path):
  os.mkfifo(tmp_path / 'x.png')
  with pytest.raises(BadImage):
    Slice(str(tmp_path / 'x.png')).read()


def test_names_are_one_line(tmp_path):
  root = write_tree(tmp_path / 'set', {'a\nb': 1, 'c\u2028d\r': 1, 'Käse und Brot': 1})
  for source in (root, as_zip(root, tmp_path / 'set.zip'), as_tar(root, tmp_path / 'set.tar')):
    found = open_source(str(source)).listing(EVERY).class_ids
    assert found == ['Käse und Brot', 'a\\nb', 'c\\u2028d\\r']
    assert len(contents(source)) == 3


def test_an_unreadable_folder(root, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith('dog'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(InputError, match=r'train/dog: cannot be read \(Permission denied\)'):
    open_source(str(root)).listing(EVERY)


@pytest.mark.parametrize('name', ['/etc/x.jpg', '../x.jpg', 'a/../../x.jpg', 'C:\\x.jpg'])
@pytest.mark.parametrize('kind', ['tar', 'tar.gz', 'zip'])
def test_paths_that_leave_the_archive_are_refused(tmp_path, name, kind):
  path = tmp_path / f'set.{kind}'
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w') as file:
      file.writestr(name, b'x')
  else:
    with tarfile.open(path, 'w:gz' if kind == 'tar.gz' else 'w') as file:
      add_bytes(file, name, b'x')
  with pytest.raises(InputError, match=r'points outside of the archive, which is refused'):
    open_source(str(path)).listing(EVERY)


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_archives_are_refused(tmp_path, kind):
  path = tmp_path / 'set.tar'
  with tarfile.open(path, 'w') as file:
    member = tarfile.TarInfo('a/x.jpg')
    member.type, member.linkname = kind, '/etc/passwd'
    file.addfile(member)
  with pytest.raises(InputError, match=r"'a/x.jpg' is a link or a device"):
    open_source(str(path)).listing(EVERY)


def test_links_in_a_zip_are_refused(tmp_path):
  path = tmp_path / 'set.zip'
  with zipfile.ZipFile(path, 'w') as file:
    info = zipfile.ZipInfo('a/x.jpg')
    info.external_attr = 0o120777 << 16
    file.writestr(info, '/etc/passwd')
  with pytest.raises(InputError, match=r'is a link'):
    open_source(str(path)).listing(EVERY)


@pytest.mark.parametrize('kind', ['tar', 'tar.gz', 'zip'])
def test_a_missing_and_a_cut_archive(root, tmp_path, kind):
  with pytest.raises(InputError, match=r'nothing\..*: no such file'):
    open_source(str(tmp_path / f'nothing.{kind}'))
  path = forms(root)[kind]
  whole = path.read_bytes()
  for end in (300, len(whole) // 2, -400 if kind != 'tar' else -10_240):
    path.write_bytes(whole[:end])
    with pytest.raises(DamagedError, match=f'{path}: not a whole archive'):
      contents(path)


def test_a_broken_header_in_the_middle_of_a_tar_is_not_its_end(root, tmp_path):
  path = as_tar(root, tmp_path / 'pets.tar')
  with tarfile.open(path) as file:
    offset = file.getmembers()[9].offset
  content = bytearray(path.read_bytes())
  content[offset + 150] ^= 1  # Of the header's checksum.
  path.write_bytes(content)
  with pytest.raises(DamagedError, match=f'no end mark after byte {offset:,}'):
    contents(path)


def test_a_changed_byte_in_a_compressed_tar_is_noticed(root, tmp_path):
  path = as_tar(root, tmp_path / 'pets.tar.gz', 'w:gz')
  whole = path.read_bytes()
  for position in range(40, len(whole), len(whole) // 12):
    content = bytearray(whole)
    content[position] ^= 4
    path.write_bytes(content)
    with pytest.raises((DamagedError, InputError)):
      contents(path)


@pytest.mark.parametrize('kind', ['tar', 'tar.gz', 'zip'])
def test_of_members_with_one_path_the_last_counts(tmp_path, kind):
  first, last = encoded(picture(1)), encoded(picture(2))
  path = tmp_path / f'set.{kind}'
  if kind == 'zip':
    with zipfile.ZipFile(path, 'w') as file, pytest.warns(UserWarning, match='Duplicate'):
      for name, content in (('a/x.jpg', first), ('b/y.jpg', first), ('a/x.jpg', last)):
        file.writestr(name, content)
  else:
    with tarfile.open(path, 'w:gz' if kind == 'tar.gz' else 'w') as file:
      for name, content in (('a/x.jpg', first), ('b/y.jpg', first), ('a/x.jpg', last)):
        add_bytes(file, name, content)
  assert contents(path) == {('train', 'a', 'x.jpg'): last, ('train', 'b', 'y.jpg'): first}
  notes = open_source(str(path)).listing(EVERY).notes
  assert notes == ['left out, earlier files of the same path: 1']


def test_names_that_are_not_utf_8(tmp_path):
  root = write_tree(tmp_path / 'set', {'a': 1, 'b': 1})
  odd = os.fsencode(root) + b'/caf\xe9'
  os.mkdir(odd)
  with open(odd + b'/\xff.jpg', 'wb') as file:
    file.write(encoded(picture(3)))
  for source in (root, as_tar(root, tmp_path / 'set.tar')):
    found = contents(source)
    assert found['train', 'caf\\xe9', '\\xff.jpg'] == encoded(picture(3))
    assert ''.join(map(str, found)).encode()


def test_the_kind_of_an_archive_is_told_from_its_content(root, tmp_path):
  expected = contents(root)
  for name, source in forms(root).items():
    if name != 'tree':
      renamed = source.rename(tmp_path / f'{name.replace(".", "")}.TAR')
      assert contents(renamed) == expected, name
  text = tmp_path / 'set.jpg'
  text.write_bytes(encoded(picture(0)))
  with pytest.raises(InputError, match=f'{text}: neither a tar nor a zip'):
    open_source(str(text))


def test_encrypted_zips_are_told(root, tmp_path):
  path = as_zip(root, tmp_path / 'pets.zip')
  content = bytearray(path.read_bytes())
  content[content.index(b'PK\x01\x02') + 8] |= 1  # The flag in the first central entry.
  path.write_bytes(content)
  with pytest.raises(InputError, match='is encrypted; repack it as a plain zip'):
    contents(path)


def test_links_are_followed_but_not_in_a_circle(root, tmp_path):
  linked = tmp_path / 'linked'
  linked.symlink_to(root)
  assert contents(linked) == contents(root)
  (root / 'train' / 'cat' / 'up').symlink_to(root)
  with pytest.raises(InputError, match='train/cat/up: a symbolic link to a folder that it lies in'):
    contents(root)


def test_official_archives(tmp_path):
  wnids = cmc_and_others()
  source = write_ilsvrc2012(tmp_path / 'ilsvrc', wnids, per_class=2, validation=2)
  chosen = class_lists.read('cmc', 'sorted').ids
  found = contents(source, keep=lambda class_id: class_id in chosen)
  assert len(found) == 400 and {key[1] for key in found} == set(chosen)
  for number, wnid in enumerate(wnids):
    if wnid in chosen:  # As write_ilsvrc2012 made them: the label list was understood.
      assert found['train', wnid, f'{wnid}_1.JPEG'] == encoded(picture(1000 * number + 1))
      held = [content for key, content in found.items() if key[:2] == ('holdout', wnid)]
      assert held == [encoded(picture(1000 * number + 500))] * 2
  (source / imagenet.DEVKIT).unlink()
  with pytest.raises(InputError, match=f'{imagenet.DEVKIT} missing; expected'):
    open_source(str(source))


def test_official_archives_that_are_not(tmp_path):
  source = write_ilsvrc2012(tmp_path / 'ilsvrc', ['n00000001', 'n00000002'])
  with tarfile.open(source / imagenet.VALIDATION, 'w') as file:
    add_bytes(file, 'ILSVRC2012_val_00000001.JPEG', b'x')
  with pytest.raises(InputError, match=r'1 images, but .* has labels for 2'):
    open_source(str(source)).listing(EVERY)
  with tarfile.open(source / imagenet.DEVKIT, 'w:gz') as file:
    add_bytes(file, f'data/{imagenet.GROUND_TRUTH}', b'1')
    add_bytes(file, 'data/meta.mat', b'no such thing')
  with pytest.raises(DamagedError, match=r'meta\.mat is damaged'):
    open_source(str(source)).listing(EVERY)
  with tarfile.open(source / imagenet.TRAIN, 'w') as file:
    add_bytes(file, 'train/n00000001/x.JPEG', b'x')
  with pytest.raises(InputError, match=r'expected one WNID\.tar a class'):
    open_source(str(source)).listing(EVERY)


@pytest.mark.parametrize('file_format', ['tfrecord', 'array_record'])
def test_the_tfds_builder_and_its_reader(tmp_path, monkeypatch, file_format):
  import tensorflow_datasets

  source = write_ilsvrc2012(tmp_path / 'ilsvrc', cmc_and_others(), per_class=1)
  monkeypatch.setattr(tensorflow_datasets.core.constants, 'DATA_DIR', str(tmp_path / 'tfds'))
  with pytest.raises(InputError, match=r"'imagenet100' is not prepared.*download_and_prepare"):
    open_source('imagenet100')
  builder = imagenet100_tfds.Imagenet100(data_dir=tmp_path / 'tfds')
  manual = tensorflow_datasets.download.DownloadConfig(manual_dir=source)
  builder.download_and_prepare(download_config=manual, file_format=file_format)
  if file_format == 'tfrecord':
    loaded = tensorflow_datasets.load('imagenet100', data_dir=tmp_path / 'tfds', split='validation')
    assert len(loaded) == 100

  listing = open_source('imagenet100').listing(EVERY)
  assert listing.class_ids == list(class_lists.read('cmc', 'sorted').ids)
  keep = set(listing.class_ids[::9])
  by_archive = contents(source, keep=lambda class_id: class_id in keep)
  by_tfds = contents('imagenet100', keep=lambda class_id: class_id in keep)
  assert len(keep) == 12 and len(by_tfds) == 24
  for split in ('train', 'holdout'):
    assert {(k[1], v) for k, v in by_tfds.items() if k[0] == split} == {
      (k[1], v) for k, v in by_archive.items() if k[0] == split
    }
  with pytest.raises(InputError, match="'no_such_set' does not exist, and TFDS has no data set"):
    open_source('no_such_set')
