"""Files that someone sent: each of them is one message with exit code 2 or 3, and nothing of them runs.

With the flags and values of tests/test_command.py they are the table of bad inputs.
"""

import gzip
import io
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
import zlib

import numpy as np
import pytest

from diffusion_jax.command import run_mode
from diffusion_jax.errors import Stop
from tests.conftest import tiny_mapping
from tests.support.sources import encoded, picture
from tests.support.tiny_flags import TINY
from tests.test_command import CASES

DEEP = '[' * 100_000


class Runs:
  """Unpickled, it writes a file."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return (open, (self.path, 'w'))


def png(width, height):
  """The header of an image of this size."""

  def chunk(kind, content):
    return (
      struct.pack('>I', len(content))
      + kind
      + content
      + struct.pack('>I', zlib.crc32(kind + content))
    )

  size = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', b'') + chunk(b'IEND', b'')


def npy(shape, dtype='|u1', content=b''):
  header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".ljust(117) + '\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header.encode() + content


def as_zip(path, **members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, content in members.items():
      file.writestr(name.replace('__', '/').replace('DOT', '.'), content)
  return path


def as_tar(path, name, kind=tarfile.REGTYPE, content=b'', link=''):
  with tarfile.open(path, 'w') as file:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(content)
    file.addfile(member, io.BytesIO(content))
  return path


def zip_bomb(path):
  """300 MB of zeros in 300 kB, as an image."""
  with (
    zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file,
    file.open('c/a.png', 'w') as member,
  ):
    for _ in range(300):
      member.write(bytes(2**20))
  return path


def objects(path):
  np.savez(path, arr_0=np.array([Runs(path.with_name('ran'))], object))
  return path


def written(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return path


def safetensors(header, content=b''):
  return struct.pack('<Q', len(header)) + header.encode() + content


F32 = '{"w":{"dtype":"F32","shape":%s,"data_offsets":[0,%d]}}'
GOOD = encoded(picture(1))
# Sources of images: name -> (folder -> path).
SOURCES = {
  'a png of 10 gigapixels': lambda f: written(f / 'c' / 'a.png', png(100_000, 100_000)).parents[1],
  'an image of no pixels': lambda f: written(f / 'c' / 'a.png', png(0, 0)).parents[1],
  'text called png': lambda f: written(f / 'c' / 'a.png', 'text').parents[1],
  'an empty jpeg': lambda f: written(f / 'c' / 'a.jpg', b'').parents[1],
  'half a jpeg': lambda f: written(f / 'c' / 'a.jpg', GOOD[: len(GOOD) // 2]).parents[1],
  'a zip out of its folder': lambda f: as_zip(f / 'a.zip', **{'DOTDOT__c__aDOTpng': GOOD}),
  'an absolute zip': lambda f: as_zip(f / 'a.zip', **{'__c__aDOTpng': GOOD}),
  'a zip that is cut': lambda f: written(
    f / 'a.zip', as_zip(f / 'b.zip', aDOTjpg=GOOD).read_bytes()[:-30]
  ),
  'a zip bomb': lambda f: zip_bomb(f / 'a.zip'),
  'a tar out of its folder': lambda f: as_tar(f / 'a.tar', '../c/a.jpg', content=GOOD),
  'a tar with a link': lambda f: as_tar(
    f / 'a.tar', 'c/a.jpg', tarfile.SYMTYPE, link='/etc/passwd'
  ),
  'a tar with a device': lambda f: as_tar(f / 'a.tar', 'c/a.jpg', tarfile.CHRTYPE),
  'a gzip of text': lambda f: written(f / 'a.tar.gz', gzip.compress(b'text' * 1000)),
  'a gzip that is cut': lambda f: written(f / 'a.tgz', gzip.compress(bytes(10_000))[:-9]),
  'a file of zeros': lambda f: written(f / 'a.tar', bytes(10)),
}
FOLDER = {'data.holdout': 0, 'num_classes': 1}
# config.eval.reference.
REFERENCES = {
  'pickled objects': lambda f: objects(f / 'r.npz'),
  'a pickle called npz': lambda f: written(f / 'r.npz', pickle.dumps(Runs(f / 'ran'))),
  'an absurd shape': lambda f: as_zip(f / 'r.npz', arr_0DOTnpy=npy((10**12, 8, 8, 3))),
  'a negative shape': lambda f: as_zip(f / 'r.npz', arr_0DOTnpy=npy((-1, 8, 8, 3))),
  'a header that is code': lambda f: as_zip(f / 'r.npz', arr_0DOTnpy=npy('__import__("os")')),
  'a deep header': lambda f: as_zip(f / 'r.npz', arr_0DOTnpy=npy((1,)).replace(b'(1,)', b'(' * 60)),
  'mu without sigma': lambda f: as_zip(f / 'r.npz', muDOTnpy=npy((1,), '<f8', bytes(8))),
  'images in floats': lambda f: as_zip(
    f / 'r.npz', arr_0DOTnpy=npy((1, 1, 1, 3), '<f4', bytes(12))
  ),
  'an empty file': lambda f: written(f / 'r.npz', b''),
  'no file': lambda f: f / 'r.npz',
}
# config.init_from.
WEIGHTS = {
  'a header longer than the file': lambda f: written(f / 'w.safetensors', struct.pack('<Q', 2**40)),
  'deep json': lambda f: written(f / 'w.safetensors', safetensors(DEEP)),
  'an absurd tensor': lambda f: written(
    f / 'w.safetensors', safetensors(F32 % ('[4294967296,1024]', 4), bytes(4))
  ),
  'offsets outside': lambda f: written(
    f / 'w.safetensors', safetensors(F32 % ('[1]', 4000), bytes(4))
  ),
  'an unknown type': lambda f: written(
    f / 'w.safetensors', safetensors('{"w":{"dtype":"Q","shape":[1]}}')
  ),
  'a pickle': lambda f: written(f / 'w.pt', pickle.dumps(Runs(f / 'ran'))),
  'a suffix of no weights': lambda f: written(f / 'w.h5', b'x'),
}
# Files of a work directory: (name, content, mode).
WORKDIR = {
  'config.json, deep': ('config.json', DEEP, 'sample'),
  'config.json, a list': ('config.json', '[]', 'sample'),
  'config.json, of a later version': ('config.json', '{"format_version": 99, "data": {}}', 'train'),
  'config.json, binary': ('config.json', b'\xff\xfe\x00', 'evaluate'),
  'meta.json of a set, deep': ('samples/ddim2-cfg1/meta.json', DEEP, 'sample'),
  'meta.json of a set, a number': ('samples/ddim2-cfg1/meta.json', '3', 'evaluate'),
  'a part of pickled objects': ('samples/ddim2-cfg1/part-00000000.npz', objects, 'evaluate'),
  'a part that is text': ('samples/ddim2-cfg1/part-00000000.npz', 'text', 'evaluate'),
}
DATA = {
  'meta.json of data, deep': DEEP,
  'meta.json of data, null': 'null',
  'meta.json of data, empty': '',
}


def test_there_are_sixty_bad_inputs():
  assert sum(map(len, (CASES, SOURCES, REFERENCES, WEIGHTS, WORKDIR, DATA))) >= 60


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  for mode in ('train', 'sample'):
    run_mode(mode, tiny_mapping(folder, **TINY), {}, folder / 'run')
  return folder


def refused(mode, folder, workdir, names, **changes):
  """Asserts one message, within 5 s on a quiet machine, that names one of `names`."""
  began = time.monotonic()
  with pytest.raises(Stop) as stop:
    run_mode(mode, tiny_mapping(folder, **{**TINY, **changes}), changes, workdir)
  print(stop.value)
  assert stop.value.exit_code in (2, 3)
  assert any(str(name) in str(stop.value) for name in names), stop.value
  assert len(str(stop.value)) < 3000 and time.monotonic() - began < 20
  assert not list(workdir.parent.rglob('ran'))


@pytest.mark.parametrize('name', SOURCES)
def test_sources(tmp_path, name):
  (tmp_path / 'in').mkdir()
  path = SOURCES[name](tmp_path / 'in')
  named = path / 'c' / 'a.' if path.is_dir() else path
  named = 'allowed 268,435,456' if 'bomb' in name else named
  refused('prepare', tmp_path, tmp_path / 'run', [named], **{**FOLDER, 'data.source': str(path)})


@pytest.mark.parametrize('name', REFERENCES)
def test_references(trained, tmp_path, name):
  path = REFERENCES[name](tmp_path)
  refused('evaluate', trained, trained / 'run', [path], **{'eval.reference': str(path)})


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights(trained, tmp_path, name):
  path = WEIGHTS[name](tmp_path)
  changes = {'data.dir': str(trained / 'data'), 'init_from': str(path), 'allow_pickle': True}
  refused('train', tmp_path, tmp_path / 'run', [path], **changes)


@pytest.mark.parametrize('name', WORKDIR)
def test_work_directories(trained, tmp_path, name):
  file, content, mode = WORKDIR[name]
  shutil.copytree(trained / 'run', tmp_path / 'run')
  path = tmp_path / 'run' / file
  content(path) if callable(content) else written(path, content)
  refused(mode, trained, tmp_path / 'run', [path])


@pytest.mark.parametrize('name', DATA)
def test_prepared_data(trained, tmp_path, name):
  shutil.copytree(trained / 'data', tmp_path / 'data')
  (path,) = (tmp_path / 'data').glob('digits-*/meta.json')
  path.write_text(DATA[name])
  refused('train', tmp_path, tmp_path / 'run', [path], **{'data.source': ''})
