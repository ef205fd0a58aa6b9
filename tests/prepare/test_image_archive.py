"""Images from folders, archives and addresses: all of them, in their folder, or none at all."""

import functools
import hashlib
import http.server
import io
import shutil
import tarfile
import threading

import pytest

from tests.helpers import write_images
from vit_jax.errors import UserError
from vit_jax.prepare import image_archive
from vit_jax.prepare.image_archive import fetch_images

IMAGES = {'pets/cat/1.png': (8, 8), 'pets/dog/1.png': (8, 8)}


@pytest.fixture
def folder(tmp_path):
  write_images(tmp_path / 'images', IMAGES)
  return tmp_path / 'images'


def test_a_folder_is_used_as_it_is(folder, tmp_path):
  assert fetch_images(str(folder), tmp_path / 'new') == folder
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('kind', ['zip', 'tar', 'gztar', 'xztar'])
def test_archives_are_unpacked_once(kind, folder, tmp_path):
  archive = shutil.make_archive(str(tmp_path / 'archive'), kind, folder)
  target = fetch_images(archive, tmp_path / 'data')
  assert target == tmp_path / 'data' / 'archive'
  for name in IMAGES:
    assert (target / name).read_bytes() == (folder / name).read_bytes()
  (target / 'pets/cat/1.png').unlink()
  assert (
    fetch_images(archive, tmp_path / 'data') == target and not (target / 'pets/cat/1.png').exists()
  )
  assert [path.name for path in (tmp_path / 'data').iterdir()] == ['archive']


def test_only_the_archive_with_the_sha256_is_unpacked(folder, tmp_path):
  archive = shutil.make_archive(str(tmp_path / 'archive'), 'zip', folder)
  with pytest.raises(UserError, match='has the sha256 [0-9a-f]{64} instead of 00'):
    fetch_images(archive, tmp_path / 'data', sha256='00')
  digest = hashlib.sha256((tmp_path / 'archive.zip').read_bytes()).hexdigest()
  assert fetch_images(archive, tmp_path / 'data', sha256=digest).is_dir()


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
  with tarfile.open(tmp_path / 'bad.tar', 'w') as file:
    member = tarfile.TarInfo('../outside.png')
    member.size = 3
    file.addfile(member, io.BytesIO(b'abc'))
  with pytest.raises(UserError, match='damaged archive .*outside'):
    fetch_images(tmp_path / 'bad.tar', tmp_path / 'data')
  assert not any((tmp_path / 'data').iterdir())


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    ('missing', 'neither a folder nor an archive'),
    ('missing.zip', 'no file or folder missing.zip'),
    ('http://localhost/a.zip', 'not an https address'),
    ('https://localhost:1/a.zip', 'cannot be downloaded'),
  ],
)
def test_other_sources_are_refused(source, message, tmp_path):
  with pytest.raises(UserError, match=message):
    fetch_images(source, tmp_path / 'data')
  assert not list((tmp_path / 'data').glob('*'))


@pytest.mark.parametrize('suffix', ['.zip', '.tar.gz'])
def test_a_damaged_archive_leaves_nothing(suffix, tmp_path):
  (tmp_path / f'bad{suffix}').write_bytes(b'not an archive')
  with pytest.raises(UserError, match='damaged archive'):
    fetch_images(tmp_path / f'bad{suffix}', tmp_path / 'data')
  assert not any((tmp_path / 'data').iterdir())


def test_an_archive_is_downloaded(folder, tmp_path, monkeypatch):
  shutil.make_archive(str(tmp_path / 'archive'), 'zip', folder)

  class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      del args

  handler = functools.partial(Handler, directory=str(tmp_path))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'127.0.0.1:{server.server_port}/archive.zip'
    real = image_archive.urllib.request.urlopen

    def without_tls(url, timeout):
      return real(url.replace('https://', 'http://'), timeout=timeout)

    monkeypatch.setattr(image_archive.urllib.request, 'urlopen', without_tls)
    target = fetch_images(f'https://{address}', tmp_path / 'data')
    server.shutdown()
  assert (target / 'pets/dog/1.png').exists()
  assert [path.name for path in (tmp_path / 'data').iterdir()] == ['archive']
